"""One option as data: how it is read from text, what it may be, and what to do when it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option of an optimizer.

    Attributes:
        default: the value if nobody gives one.
        allowed: the allowed values in words, for error messages.
        accepts: is this (typed) value allowed?
        parse: reads the typed value from text such as ``--optim_args`` carries.
        remedy: what to do instead, for error messages.
    """

    default: Any
    allowed: str
    accepts: Callable[[Any], bool]
    parse: Callable[[str], Any]
    remedy: str


def is_number(value: object) -> bool:
    """A finite int or float that fits into a float, not a bool."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int of more than 308 digits
        return False


def none_or(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """``parse``, with the word none for None."""
    return lambda text: None if text.lower() == "none" else parse(text)


def parse_bool(text: str) -> bool:
    """True or False from a word."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return words[text.lower()]


def parse_pair(text: str) -> tuple[float, float]:
    """Two numbers from text such as ``0.9;0.999``."""
    first, second = text.strip("()[]").split(";")
    return float(first), float(second)


def flag(remedy: str) -> Option:
    """An option that is False unless somebody says True."""
    return Option(
        default=False,
        allowed="True or False",
        accepts=lambda value: isinstance(value, bool),
        parse=parse_bool,
        remedy=remedy,
    )


def one_of(default: Any, words: Iterable[Any], remedy: str) -> Option:
    """An option that takes one of a few words (and None, if that is the default)."""
    known = list(words)
    shown = ", ".join(repr(word) for word in known)
    return Option(
        default=default,
        allowed=shown if default is not None else f"None, {shown}",
        # An array compares with words entry by entry.
        accepts=lambda value: (
            (isinstance(value, str) and value in known) or (default is None and value is None)
        ),
        parse=none_or(str) if default is None else str,
        remedy=remedy,
    )


def integer_or_none(allowed: str, accepts: Callable[[int], bool], remedy: str) -> Option:
    """An option that takes an integer or, by default, None."""
    return Option(
        default=None,
        allowed=allowed,
        accepts=lambda value: (
            value is None
            or (isinstance(value, int) and not isinstance(value, bool) and accepts(value))
        ),
        parse=none_or(int),
        remedy=remedy,
    )


def number(
    default: float | None, allowed: str, accepts: Callable[[float], bool], remedy: str
) -> Option:
    """An option that takes a finite number (or None, if that is the default)."""
    return Option(
        default=default,
        allowed=allowed,
        accepts=lambda value: (
            (value is None and default is None) or (is_number(value) and accepts(value))
        ),
        parse=none_or(float) if default is None else float,
        remedy=remedy,
    )
