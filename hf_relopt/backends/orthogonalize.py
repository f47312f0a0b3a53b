"""Matrices orthogonalized together: those of one shape are multiplied as one stack."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from operator import attrgetter

import torch
from torch import Tensor

from hf_relopt.backends.stacks import stacked, stacks
from hf_relopt.rules import orthogonalize as polar

# Entries that are iterated on together; experts may be many.
_STACKED = 2**25
# Rows from which on, on a CPU, matrices gain nothing from being multiplied together.
_LARGE = 384
# Rows from which on a CPU with bfloat16 built in multiplies it faster than float32.
_SMALLEST_LOW = 128

_KIND = attrgetter("shape", "dtype", "device")


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The orthogonalized [rows, columns] matrices: in bfloat16 on accelerators, else as given."""
    found = list(matrices)
    for places in _stacked(tuple(map(_KIND, matrices))):
        some = list(map(matrices.__getitem__, places))
        for place, result in zip(places, _of_one_shape(some), strict=True):
            found[place] = result
    return found


@lru_cache(maxsize=256)  # the same in each step
def _stacked(kinds: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]) -> list[list[int]]:
    return list(stacks(kinds, [kind[0].numel() for kind in kinds], _STACKED))


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Is the result bfloat16 in any case? Then less needs to be sent."""
    return device.type not in ("cpu", "mps")


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Where a step is inside autocast, too, the precision of its products is ours to choose."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def _of_one_shape(matrices: list[Tensor]) -> list[Tensor]:
    first = matrices[0]
    low = multiplies_in_bfloat16(first.device) or _is_faster_in_bfloat16(first)
    used = torch.bfloat16 if low else first.dtype
    made = torch.bfloat16 if multiplies_in_bfloat16(first.device) else first.dtype
    with without_autocast(first.device):
        if first.device.type == "cpu" and min(first.shape) >= _LARGE:
            return [polar.orthogonalize(each.to(used)).to(made).contiguous() for each in matrices]
        stack = stacked(matrices).to(used)
        return list(polar.orthogonalize(stack).to(made).contiguous().unbind())


def _is_faster_in_bfloat16(matrix: Tensor) -> bool:
    """Say whether a CPU multiplies it faster so, as one does that has bfloat16 built in.

    The momentum is float32 in either case. What does not fill a CPU's units gains nothing there.
    """
    fills = matrix.device.type == "cpu" and min(matrix.shape) >= _SMALLEST_LOW
    return fills and _cpu_has_bfloat16()


@cache
def _cpu_has_bfloat16() -> bool:
    # torch has no public word for it; one that has not this one either stays with float32.
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked and asked())
