"""From a recipe and what the user changes of it to one `accelerate launch` command."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_relopt.cli.recipe_files import Recipe
from hf_relopt.errors import ConfigError

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
# What a recipe says gives way where the user says the other thing: both at once would be refused,
# or the recipe's would win.
GIVES_WAY = {
    "train_file": ("dataset_name", "dataset_config_name"),
    "dataset_name": ("dataset_config_name",),
    "num_train_epochs": ("max_steps",),
    "model_name_or_path": ("model_type", "config_name", "config_overrides", "tokenizer_name"),
    "config_name": ("model_type", "config_overrides", "tokenizer_name"),
    "model_type": ("config_overrides",),
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

    flags = _flags(overrides)
    launcher = [words for name, words in flags if name in LAUNCHER_FLAGS]
    script = [words for name, words in flags if name not in LAUNCHER_FLAGS]
    written = yaml.safe_load(recipe.arguments.read_text("utf-8"))
    kept = _without({name for name, _ in flags}, written)
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *(["--config_file", str(accelerate)] if accelerate else []),
        *(word for words in launcher for word in words),
        str(recipe.script),
        *(word for name, value in kept.items() for word in _as_words(name, value)),
        *(word for words in script for word in words),
    ]


def _flags(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag's name, and the flag as typed with its values."""
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            flags.append((name, [word]))
        elif flags:
            flags[-1][1].append(word)
        else:
            raise ConfigError(f"{word!r} is no flag; write changes as --flag value.")
    return flags


def _without(given: set[str], written: Mapping[str, Any]) -> dict[str, Any]:
    gone = given.union(*(GIVES_WAY.get(name, ()) for name in given))
    return {name: value for name, value in written.items() if name not in gone}


def _as_words(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *map(str, values)]
