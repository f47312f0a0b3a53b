"""From a recipe and what the user changes of it to one `accelerate launch` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hf_relopt.cli import flags
from hf_relopt.cli.recipe_files import Recipe

# `accelerate launch`, which ends with the script's own exit code.
LAUNCHER = (sys.executable, "-m", "hf_relopt.cli.launch")
# Flags of `accelerate launch`; no script of ours has one of these names.
LAUNCHER_FLAGS = {
    "gpu_ids",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "mixed_precision",
    "num_cpu_threads_per_process",
    "num_machines",
    "num_processes",
    "parallelism_config_dp_replicate_size",
    "parallelism_config_dp_shard_size",
}


def launch_command(recipe: Recipe, accelerate: Path | None, overrides: Sequence[str]) -> list[str]:
    """The command, with this Python's own Accelerate.

    Args:
        recipe: what to train.
        accelerate: Accelerate's configuration; None for the user's own.
        overrides: flags for the launcher or the script, as typed. They win over the recipe's.

    Raises:
        ConfigError: overrides that are no flags.
    """
    import yaml

    said = flags.split(overrides)
    launcher = [flag for flag in said if flag.name in LAUNCHER_FLAGS]
    script = [flag for flag in said if flag.name not in LAUNCHER_FLAGS]
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
