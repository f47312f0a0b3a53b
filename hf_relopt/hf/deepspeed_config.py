"""DeepSpeed's own JSON configuration, as opposed to Accelerate's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_relopt.errors import ConfigError
from hf_relopt.hf.launch_files import find_launch_file

# Keys of DeepSpeed's own configuration; no Accelerate configuration has one of them.
_DEEPSPEED_KEYS = {
    "zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "bf16", "fp16",
    "optimizer", "scheduler", "zero_allow_untested_optimizer", "gradient_clipping",
    "activation_checkpointing", "steps_per_print", "wall_clock_breakdown",
}  # fmt: skip
_ACCELERATE_KEYS = {"distributed_type", "compute_environment", "num_processes", "num_machines"}


def read(path: Path) -> dict[str, Any] | None:
    """DeepSpeed's own configuration from a JSON file; None if the file holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or _ACCELERATE_KEYS & found.keys():
        return None
    return found if _DEEPSPEED_KEYS & found.keys() else None


def is_own(name_or_file: str) -> bool:
    """Whether --accelerate was given DeepSpeed's own file."""
    return read(find_launch_file(name_or_file)) is not None


def mixed_precision(found: dict[str, Any]) -> str:
    """The mixed precision that a configuration switches on: "bf16", "fp16" or "no"."""
    return next((name for name in ("bf16", "fp16") if _is_on(found.get(name))), "no")


def _is_on(section: Any) -> bool:
    return isinstance(section, dict) and section.get("enabled") not in (None, False, "false")


def with_a_number(found: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its ZeRO stage as a number, also if it was written as text.

    Raises:
        ConfigError: the stage is neither.
    """
    zero = found.get("zero_optimization")
    if not isinstance(zero, dict) or isinstance(zero.get("stage", 0), int):
        return found
    stage = str(zero["stage"]).strip()
    if not stage.isdigit():
        raise ConfigError(
            f"The DeepSpeed configuration has zero_optimization.stage {zero['stage']!r}; it takes "
            "a whole number from 0 to 3."
        )
    return {**found, "zero_optimization": {**zero, "stage": int(stage)}}
