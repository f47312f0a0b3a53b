"""The command line as words: a file of arguments becomes the same arguments as flags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_relopt.cli import flags
from hf_relopt.errors import ConfigError


def expanded(argv: Sequence[str]) -> list[str]:
    """The flags of a command line, with those of a file in front of them that they do not set.

    Args:
        argv: ``[FILE.json or FILE.yaml] [--flag value ...]``.

    Raises:
        ConfigError: a first word that is neither, or a file that cannot be used.
    """
    if not argv or argv[0].startswith("-"):
        return list(argv)
    written, said = arguments_file(Path(argv[0])), flags.split(argv[1:])
    kept = flags.without({flag.name for flag in said}, written)
    words = [word for name, value in kept.items() for word in flags.as_words(name, value)]
    return [*words, *flags.joined(said)]


def arguments_file(path: Path) -> dict[str, Any]:
    """The names and values in a JSON or YAML file.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        there = path.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise ConfigError(f"{path} is neither a flag (--name value) nor a file of arguments.")
    import yaml

    try:
        text = path.read_text("utf-8")
        written = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, OSError, yaml.YAMLError, RecursionError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"cannot read the arguments in {path}: {words or type(error).__name__}."
        ) from error
    if not isinstance(written, dict) or not all(isinstance(name, str) for name in written):
        kind = "names that are not words" if isinstance(written, dict) else _kind(written)
        raise ConfigError(f"{path} must hold names and values, as in `max_steps: 100`, not {kind}.")
    for name, value in written.items():
        if isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
            raise ConfigError(f"{path} has lists in the list {name}; no argument takes them.")
    return written


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
