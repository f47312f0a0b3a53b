"""How the tests call a recipe: with tiny settings, in this process or in others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


def tiny_pretraining(text: Path, output: Path, **more: object) -> list[str]:
    """Arguments that train a GPT-2 of 6,000 parameters."""
    flags = {
        "train_file": text, "output_dir": output, "vocab_size": 270, "block_size": 16,
        "config_overrides": "n_layer=1,n_embd=16,n_head=2", "per_device_train_batch_size": 2,
        "max_eval_samples": 12, "max_steps": 2, "logging_steps": 1, "eval_steps": 2,
        "save_steps": 2, "use_cpu": True, **more,
    }  # fmt: skip
    return as_arguments(flags)


def tiny_finetuning(table: Path, model: Path, output: Path, **more: object) -> list[str]:
    """Arguments that fine-tune a tiny BERT."""
    flags = {
        "train_file": table, "model_name_or_path": model, "output_dir": output,
        "per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1, "eval_steps": 2,
        "save_steps": 2, "validation_share": 0.25, "use_cpu": True, **more,
    }  # fmt: skip
    return as_arguments(flags)


def as_arguments(flags: dict[str, object]) -> list[str]:
    """A command line from names and values; None leaves a flag out."""
    pairs = ((f"--{name}", str(value)) for name, value in flags.items() if value is not None)
    return [word for pair in pairs for word in pair]


def start(script: str, arguments: list[str], *, processes: int = 1) -> subprocess.Popen[str]:
    """Start a recipe as a user does, with torchrun if there are several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, str(RECIPES / script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
