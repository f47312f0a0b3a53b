"""Metric modules of our own, loaded with `evaluate` from the folder beside this file."""

from __future__ import annotations

from pathlib import Path

import evaluate
from transformers import TrainingArguments


def load_metric(name: str, args: TrainingArguments) -> evaluate.EvaluationModule:
    """Load recipes/metrics/<name>; needs no network and leaves no file of predictions behind.

    `evaluate` copies the module into its cache: one process after the other.
    """
    with args.main_process_first(desc="loading the metric"):
        return evaluate.load(str(Path(__file__).parent / "metrics" / name), keep_in_memory=True)
