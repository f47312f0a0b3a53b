"""Formats: a logarithmic number system as data.

    w = sign * s * exp(-delta * (L - q)),      q in {1 ... L},      and 0 at q = 0

A code of B bits is one bit of sign and B - 1 of q, so that L = 2^(B-1) - 1. s: scale, the largest
weight there is room for, of a tensor or of a row; delta: distance of neighbouring levels in natural
log space. "Learning compositional functions via multiplicative weight updates" (Bernstein, Zhao,
Meister, Liu, Anandkumar, Yue, 2020; arXiv 2006.14560) counts from the other end, k = L - q, and has
no zero.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from hf_relopt.errors import ConfigError
from hf_relopt.lns.packing import code_dtype

# Bits of a code for which packing and codec are made. Below, levels are too far apart to train in.
BITS = (8, 10, 12, 16)


@dataclass(frozen=True)
class LNSFormat:
    """A logarithmic number system.

    Attributes:
        name: what it is called in options and files.
        bits: of a code, 8, 10, 12 or 16; one of them is the sign.
        spacing: delta > 0, the distance of neighbouring levels in natural log space: a level is
            exp(delta) times the one below it.
        scale: what has a scale of its own: "row" (each index of the first dimension of tensors of
            two dimensions or more) or "tensor".

    Raises:
        ConfigError: a value outside of these, or levels that float32 has no numbers for.
    """

    name: str
    bits: int
    spacing: float
    scale: Literal["row", "tensor"] = "row"

    def __post_init__(self) -> None:
        if self.bits not in BITS or isinstance(self.bits, bool):
            raise ConfigError(
                f"bits is {self.bits!r} in format {self.name!r}; codes have "
                f"{', '.join(map(str, BITS[:-1]))} or {BITS[-1]} bits."
            )
        if self.scale not in ("row", "tensor"):
            raise ConfigError(
                f"scale is {self.scale!r} in format {self.name!r}; use 'row' or 'tensor'."
            )
        most = _LOG_RANGE / (self.levels - 1)
        if not isinstance(self.spacing, int | float) or not _LEAST_SPACING <= self.spacing <= most:
            raise ConfigError(
                f"spacing is {self.spacing!r} in format {self.name!r}; with {self.bits} bits it is "
                f"at least {_LEAST_SPACING:g}, below which neighbours are one in float32, and at "
                f"most {most:.3g}, so that the smallest level is a number."
            )

    @property
    def levels(self) -> int:
        """L, the levels of either sign beside zero."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def sign_bit(self) -> int:
        """What a code has that is set for weights below zero."""
        return int(2 ** (self.bits - 1))

    @property
    def dynamic_range(self) -> float:
        """The largest level over the smallest."""
        return math.exp(self.spacing * (self.levels - 1))

    @property
    def worst_error(self) -> float:
        """The largest relative error of rounding to the nearest level, within the range."""
        return math.exp(self.spacing / 2) - 1

    @property
    def mean_error(self) -> float:
        """Its mean, for weights that are spread evenly over a step in log space."""
        # The mean of |exp(t) - 1| for t from -delta/2 to delta/2.
        return 4 * (math.cosh(self.spacing / 2) - 1) / (2 * self.spacing)

    @property
    def dtype(self) -> torch.dtype:
        """What unpacked codes are held in."""
        return code_dtype(self.bits)


# The smallest scale, so that all levels below it are normal numbers of float32; and how far below.
SMALLEST_SCALE = 2.0**-60
_LOG_RANGE = 60 * math.log(2)
_LEAST_SPACING = 2.0**-20

# Spacings by measurement: benchmarks/results/lns_formats_cpu_202611.md, and those of 8 bits by what
# training ends with as well, lns_quality_cpu_202611.md.
FORMATS: dict[str, LNSFormat] = {
    "lns8": LNSFormat("lns8", 8, 0.04),
    "lns10": LNSFormat("lns10", 10, 0.013),
    "lns12": LNSFormat("lns12", 12, 0.004),
    "lns16": LNSFormat("lns16", 16, 0.0003),
}


def format_of(name: str | LNSFormat) -> LNSFormat:
    """The format of a name; a format is returned as it is.

    Raises:
        ConfigError: there is none of this name.
    """
    if isinstance(name, LNSFormat):
        return name
    if not isinstance(name, str) or name not in FORMATS:
        near = difflib.get_close_matches(str(name).lower(), FORMATS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"format is {name!r}; the named ones are {', '.join(FORMATS)}, and "
            f"LNSFormat(name, bits, spacing) makes others.{hint}"
        )
    return FORMATS[name]


@lru_cache(maxsize=64)
def levels_of(form: LNSFormat, device: torch.device) -> Tensor:
    """What each code stands for at scale one: float32 [2^B], by code. -0 is no code of a weight."""
    return _levels(form, torch.device("cpu")).to(device)


def levels_in_graph(form: LNSFormat, device: torch.device) -> Tensor:
    """The same, made where it is used: a compiler takes it for a part of its program."""
    return _levels(form, device)


def _levels(form: LNSFormat, device: torch.device) -> Tensor:
    q = torch.arange(1, form.levels + 1, dtype=torch.float64, device=device)
    above = torch.exp(-form.spacing * (form.levels - q)).to(torch.float32)
    zero = torch.zeros(1, dtype=torch.float32, device=device)
    return torch.cat([zero, above, zero, -above])


@lru_cache(maxsize=64)
def borders_of(form: LNSFormat, device: torch.device) -> Tensor:
    """Between two levels, halfway in log space, which one is nearer changes: float32 [L - 1]."""
    q = torch.arange(2, form.levels + 1, dtype=torch.float64, device="cpu") - 0.5
    return torch.exp(-form.spacing * (form.levels - q)).to(torch.float32).to(device)
