"""What weights lose when they are stored in codes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_relopt.lns.format import levels_of
from hf_relopt.lns.rows import by_rows, decoded_rows
from hf_relopt.lns.tensor import LNSTensor

# Entries that are compared at once: a few numbers in float64 for each.
_PIECE = 2**22


@dataclass(frozen=True)
class CodingError:
    """The difference of a weight W from what its codes stand for, W'.

    Attributes:
        name: of the weight.
        shape: of it.
        entries: how many it has.
        stored: bytes of its codes and scales.
        lost: |W' - W|, Frobenius, W' in the weight's own dtype, as the model sees it.
        norm: |W|.
        below: entries that are not zero and smaller than the smallest level, where they are put.
        at_top: entries at the largest level of their row.
    """

    name: str
    shape: tuple[int, ...]
    entries: int
    stored: int
    lost: float
    norm: float
    below: int
    at_top: int

    @property
    def relative(self) -> float:
        """|W' - W| / |W|."""
        return self.lost / self.norm if self.norm else 0.0

    @property
    def bits(self) -> float:
        """Bits that are stored per entry, scales included."""
        return 8 * self.stored / self.entries

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; what is below and at the top as shares of the entries."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "entries": self.entries,
            "bytes": self.stored,
            "bits_per_weight": self.bits,
            "relative_error": self.relative,
            "below_range": self.below / self.entries,
            "at_top": self.at_top / self.entries,
        }


def coding_error(name: str, before: Tensor, after: LNSTensor) -> CodingError:
    """Of one weight.

    Args:
        before: its numbers.
        after: its codes, of the same shape and dtype.
    """
    rows = before.detach().reshape(len(before), -1)
    least = float(levels_of(after.form, after.packed.device)[1])
    step = max(1, _PIECE // max(1, after.columns))
    lost = norm = below = at_top = 0.0
    for begin in range(0, len(rows), step):
        pick = slice(begin, begin + step)
        scale = after.scale[pick] if after.scale.dim() else after.scale
        numbers = decoded_rows(after.packed[pick], scale, after.form, after.columns, torch.float32)
        largest = by_rows(scale)
        wide = rows[pick].double()
        lost += float((numbers.to(after.dtype).double() - wide).square().sum())
        norm += float(wide.square().sum())
        below += int(((wide.abs() < least * largest) & (wide != 0)).sum())
        # The largest level is the scale itself, to the bit.
        at_top += int((numbers.abs() == largest).sum())
    stored = after.packed.nbytes + after.scale.nbytes
    shape = tuple(before.shape)
    found = math.sqrt(lost), math.sqrt(norm), int(below), int(at_top)
    return CodingError(name, shape, before.numel(), stored, *found)


def together(errors: Iterable[CodingError], name: str = "all") -> CodingError:
    """Of several weights as if they were one."""
    every = list(errors)
    return CodingError(
        name,
        (),
        sum(each.entries for each in every),
        sum(each.stored for each in every),
        math.hypot(*(each.lost for each in every)),
        math.hypot(*(each.norm for each in every)),
        sum(each.below for each in every),
        sum(each.at_top for each in every),
    )


def stored_bytes(params: Iterable[Tensor]) -> int:
    """The bytes of weights, in codes and numbers."""
    return sum(sum(part.nbytes for part in _parts(param)) for param in params)


def _parts(param: Tensor) -> Iterator[Tensor]:
    if isinstance(param, LNSTensor):
        yield from (param.packed, param.scale)
    else:
        yield param
