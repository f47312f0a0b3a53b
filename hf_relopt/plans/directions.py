"""The directions of Fromage by name, and the options that only some of them read.

Imports the standard library alone: presets are looked up before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DIRECTIONS = ("gradient", "momentum", "spectral", "adam", "rms", "sinkhorn", "factored")
# Which directions read which option.
READ_BY = {
    "momentum": ("momentum", "spectral", "adam"),
    "nesterov": ("momentum", "spectral"),
    "beta": ("adam", "rms", "factored", "spectral"),
    "iterations": ("sinkhorn",),
    "momentum_dtype": ("momentum", "spectral", "adam"),
}


def read_by(direction: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with None, which all of these stand at, for those that ``direction`` ignores."""
    return {
        name: value if direction in READ_BY.get(name, (direction,)) else None
        for name, value in options.items()
    }
