"""The demo's results with other optimizers; shown after a run with the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RECORD = "benchmarks/results/demo_cpu_202611.md"
SEEDS = (42, 43)
PYTHON = "3.11.7"  # whose standard library was the text
# Sequences to train on; the library of another Python is another text, but about as long.
SEQUENCES, TOLERANCE = 20313, 0.15


@dataclass(frozen=True)
class Row:
    """One optimizer of the record.

    Attributes:
        words: its name in the summary.
        optim: its name.
        lr: its learning rate; None: its default.
        warmup: share of the steps in which the learning rate rises.
        perplexity: on the validation part, mean of SEEDS.
    """

    words: str
    optim: str
    lr: float | None
    warmup: float
    perplexity: float

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        """Whether a run with these settings is one of this row's."""
        mine = (self.optim, self.lr, self.warmup)
        names = ("optim", "learning_rate", "warmup_steps")
        return mine == tuple(settings.get(name) for name in names)


ROWS: tuple[Row, ...] = (
    Row("fromage_spectral, no learning rate set", "fromage_spectral", None, 0.0, 61.8),
    Row("AdamW 0.002, the best of three", "adamw_torch", 0.002, 0.1, 94.1),
    Row("Fromage 0.03, the paper's rule", "fromage", 0.03, 0.0, 166.7),
)
# What a run's record must say to be one of the record's, besides the optimizer and its seed.
SETTINGS: dict[str, Any] = {
    "model_name_or_path": None, "config_name": None, "model_type": None, "config_overrides": None,
    "tokenizer_name": None, "vocab_size": 4096, "dataset_name": None, "dataset_config_name": None,
    "train_file": None, "validation_file": None, "validation_share": 0.05, "text_column": None,
    "block_size": None, "max_train_samples": None, "max_eval_samples": None, "sample_prompt": None,
    "optim_args": None, "max_steps": 400, "num_train_epochs": 3.0, "weight_decay": 0.0,
    "bf16": False, "fp16": False, "lr_scheduler_type": "linear", "sequences_per_step": 16,
}  # fmt: skip
_APART = {"optim", "learning_rate", "warmup_steps", "seed", "max_grad_norm"}


def comparison(record: Mapping[str, Any]) -> list[str]:
    """Lines that compare a finished run with the record; none unless it is one of its runs.

    Args:
        record: of the run, as run.json holds it.
    """
    settings = record.get("recipe", {})
    if record.get("steps") != SETTINGS["max_steps"] or settings.get("seed") not in SEEDS:
        return []
    if not any(row.is_of(settings) for row in ROWS) or _apart_from(settings) != SETTINGS:
        return []
    if abs(record.get("sequences", 0) - SEQUENCES) > TOLERANCE * SEQUENCES:
        return []
    width = max(len(row.words) for row in ROWS)
    return [
        f"The same {record['steps']} steps with other optimizers, mean of {len(SEEDS)} seeds "
        f"({RECORD}; Python {PYTHON}):",
        *(f"  {row.words:<{width}}  perplexity {row.perplexity:6.1f}" for row in ROWS),
    ]


def _apart_from(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _APART}
