"""Make one `accelerate launch` command from a recipe and the user's changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hf_relopt.cli import flags
from hf_relopt.cli.recipe_files import Recipe
from hf_relopt.errors import ConfigError

# `accelerate launch`, which ends with the script's own exit code.
LAUNCHER = (sys.executable, "-m", "hf_relopt.cli.launch")
# Flags of `accelerate launch`, with what they take; no script of ours has one of these names.
WORD, NUMBER = "", "a whole number"
LAUNCHER_FLAGS = {
    "gpu_ids": WORD,
    "machine_rank": NUMBER,
    "main_process_ip": WORD,
    "main_process_port": NUMBER,
    "mixed_precision": "no, fp16, bf16 or fp8",
    "num_cpu_threads_per_process": NUMBER,
    "num_machines": NUMBER,
    "num_processes": NUMBER,
    "parallelism_config_dp_replicate_size": NUMBER,
    "parallelism_config_dp_shard_size": NUMBER,
}


def launch_command(recipe: Recipe, accelerate: Path | None, overrides: Sequence[str]) -> list[str]:
    """The command, with this Python's own Accelerate.

    Args:
        recipe: what to train.
        accelerate: Accelerate's configuration; None for the user's own.
        overrides: flags for the launcher or the script, as typed. They win over the recipe's.

    Raises:
        ConfigError: overrides that are not flags, or a launcher's flag with a wrong kind of value.
    """
    import yaml

    said = flags.split(overrides)
    launcher = [flag for flag in said if flag.name in LAUNCHER_FLAGS]
    script = [flag for flag in said if flag.name not in LAUNCHER_FLAGS]
    for flag in launcher:
        _check(flag)
    written = yaml.safe_load(recipe.arguments.read_text("utf-8"))
    kept = flags.without({flag.name for flag in said}, written)
    return [
        *LAUNCHER,
        *(["--config_file", str(accelerate)] if accelerate else []),
        *flags.joined(launcher),
        str(recipe.script),
        *(word for name, value in kept.items() for word in flags.as_words(name, value)),
        *flags.joined(script),
    ]


def _check(flag: flags.Flag) -> None:
    """Check now what Accelerate's launcher would refuse seconds later."""
    allowed = LAUNCHER_FLAGS[flag.name]
    right = (
        flag.value.lstrip("-").isdigit()
        if allowed == NUMBER
        else flag.value in ("no", "fp16", "bf16", "fp8")
    )
    if not flag.value or (allowed and not right):
        wanted = allowed or "a value"
        raise ConfigError(f"--{flag.name} is {flag.value or 'not given'!r}; it takes {wanted}.")
