"""The limits of a budget, which check themselves, and what a look finds of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from hf_relopt.errors import ConfigError
from hf_relopt.rules.distance import deep_relative_trust, log_deep_relative_trust

COPIES = ("exact", "bfloat16", "disk")
EVERY = 100


@dataclass(frozen=True)
class Look:
    """How far the network has moved, at one look.

    Attributes:
        step: optimizer steps until then, of this run and those that it resumed.
        log_drt: sum of log1p r over weight matrices.
        largest: the largest r, and ``name`` the matrix that has it; 0 and "" if there is none.
        bound: is it an upper bound, and not measured?
        passed: what is beyond its limit, in words; None if nothing is.
    """

    step: int
    log_drt: float
    largest: float
    name: str
    bound: bool
    passed: str | None

    @property
    def drt(self) -> float:
        """Deep relative trust since the start."""
        return deep_relative_trust(self.log_drt)


@dataclass(frozen=True)
class Limits:
    """The options of DistanceBudget, which has their meaning.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
    """

    hold: float | None = None
    drt: float | None = None
    layer: float | None = None
    every: int = EVERY
    initial: str | os.PathLike[str] | None = None
    copy: str | None = None
    free: Sequence[str] = ()

    def __post_init__(self) -> None:
        numbers = {"hold": self.hold, "drt": self.drt, "layer": self.layer}
        for name, value in numbers.items():
            if value is not None and not _is_distance(value):
                raise ConfigError(
                    f"{name} is {value!r}; it takes a number > 0 (a distance relative to the "
                    f"initial weights). Use {0.03 if name == 'hold' else 0.1}, or leave it out."
                )
        if (self.hold is None) == (self.drt is None and self.layer is None):
            given = [f"{name}={value!r}" for name, value in numbers.items() if value is not None]
            raise ConfigError(
                f"DistanceBudget was given {', '.join(given) or 'no limit'}; it takes either hold, "
                "or drt, layer or both of these. To hold and to stop, pass two budgets."
            )
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise ConfigError(
                f"every is {self.every!r}; it takes a whole number of steps >= 1. Use {EVERY}."
            )
        if self.copy is not None and self.copy not in COPIES:
            raise ConfigError(
                f"copy is {self.copy!r}; it takes {', '.join(map(repr, COPIES))} or None. Leave it "
                "out for an exact copy in memory."
            )
        if isinstance(self.free, str) or not all(isinstance(each, str) for each in self.free):
            raise ConfigError(
                f"free is {self.free!r}; it takes a list of patterns over names of weights, as in "
                "['classifier.*']."
            )
        if self.initial is not None:
            object.__setattr__(self, "initial", _path(self.initial))
        object.__setattr__(self, "free", list(self.free))

    def to_dict(self) -> dict[str, Any]:
        """The options, in what JSON can hold."""
        return asdict(self)

    def is_free(self, name: str) -> bool:
        """Whether a weight of that name is left alone."""
        return any(fnmatchcase(name, pattern) for pattern in self.free)

    def check_free(self, names: Iterable[str]) -> None:
        """Refuse a pattern that none of ``names`` matches.

        Raises:
            ConfigError: as above.
        """
        known = list(names)
        for pattern in self.free:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ConfigError(
                    f"free has {pattern!r}, which matches none of the model's {len(known)} "
                    f"weights. Use a pattern over names, as of {known[-1] if known else 'w'!r}."
                )

    def judged(self, step: int, updates: Mapping[str, float], *, bound: bool) -> Look:
        """What a look at the relative updates of all matrices says."""
        log_drt = log_deep_relative_trust(updates.values())
        drt = deep_relative_trust(log_drt)
        name = max(updates, key=lambda each: updates[each], default="")
        largest = updates.get(name, 0.0)
        word = "the upper bound of " if bound else ""
        passed = None
        if self.drt is not None and not drt <= self.drt:
            passed = f"{word}deep relative trust is {drt:.4g}, above {self.drt:g}"
        elif self.layer is not None and not largest <= self.layer:
            passed = f"{word}|W - W0|/|W0| of {name} is {largest:.4g}, above {self.layer:g}"
        return Look(step, log_drt, largest, name, bound, passed)


def _is_distance(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value < float("inf")


def _path(initial: Any) -> str:
    if not isinstance(initial, (str, os.PathLike)):
        raise ConfigError(
            f"initial is a {type(initial).__name__}; it takes a path or a model of the hub. Save "
            "the network first, or leave initial out to keep a copy: copy='exact'."
        )
    return os.fspath(initial)
