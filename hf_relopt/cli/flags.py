"""Command lines as lists of words: parse, write and change flags with their values."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hf_relopt.errors import ConfigError

# What a file says gives way where the user says the other thing: both at once would be refused, or
# the file's would win.
GIVES_WAY = {
    "train_file": ("dataset_name", "dataset_config_name"),
    "dataset_name": ("dataset_config_name", "train_file", "validation_file"),
    "num_train_epochs": ("max_steps",),
    "model_name_or_path": ("model_type", "config_name", "config_overrides", "tokenizer_name"),
    "config_name": ("model_type", "config_overrides", "tokenizer_name", "model_name_or_path"),
    "model_type": ("config_overrides", "config_name", "model_name_or_path"),
}


class Flag(NamedTuple):
    """One flag as it was typed.

    Attributes:
        name: with underscores and without dashes, as in "max_steps".
        words: the flag and its values, as in ("--max-steps", "7") or ("--max_steps=7",).
    """

    name: str
    words: tuple[str, ...]

    @property
    def value(self) -> str:
        """The values in one word; empty for a flag that has none."""
        _, equals, value = self.words[0].partition("=")
        return " ".join((value, *self.words[1:])) if equals else " ".join(self.words[1:])


def split(words: Sequence[str]) -> list[Flag]:
    """Each flag with its values.

    Raises:
        ConfigError: a word before the first flag.
    """
    flags: list[Flag] = []
    for word in words:
        if word.startswith("--"):
            flags.append(Flag(word[2:].partition("=")[0].replace("-", "_"), (word,)))
        elif flags:
            flags[-1] = Flag(flags[-1].name, (*flags[-1].words, word))
        else:
            raise ConfigError(f"{word!r} is not a flag; write changes as --flag value.")
    return flags


def joined(flags: Iterable[Flag]) -> list[str]:
    """The words of flags in a row."""
    return [word for flag in flags for word in flag.words]


def without(given: Collection[str], written: Mapping[str, Any]) -> dict[str, Any]:
    """The names and values of a file, without those that flags replace."""
    gone = set(given).union(*(GIVES_WAY.get(name, ()) for name in given))
    return {name: value for name, value in written.items() if name not in gone}


def as_words(name: str, value: Any) -> list[str]:
    """A name and a value from a file as the flag that says the same; None says nothing."""
    if value is None:
        return []
    if isinstance(value, list) and value:
        return [f"--{name}", *map(str, value)]
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    # A word that begins with a dash would be taken for a flag, and no word for a missing value.
    return [f"--{name}={text}"] if text[:1] in ("-", "") else [f"--{name}", text]
