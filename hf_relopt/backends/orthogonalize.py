"""Matrices orthogonalized together: those of one shape are multiplied as one stack."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from hf_relopt.backends.stacks import stacks
from hf_relopt.rules import orthogonalize as polar

# Entries that are iterated on together; experts may be many.
_STACKED = 2**25
# Rows from which on, on a CPU, matrices gain nothing from being multiplied together.
_LARGE = 384
# Rows from which on a CPU with bfloat16 built in multiplies it faster than float32.
_SMALLEST_LOW = 128


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The orthogonalized [rows, columns] matrices: in bfloat16 on accelerators, else as given."""
    alike = [(each.device, each.dtype, each.shape) for each in matrices]
    found = list(matrices)
    for places in stacks(alike, [each.numel() for each in matrices], _STACKED):
        with _without_autocast(matrices[places[0]].device):
            results = _of_one_shape([matrices[place] for place in places])
        for place, result in zip(places, results, strict=True):
            found[place] = result
    return found


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Is the result bfloat16 in any case? Then less needs to be sent."""
    return device.type not in ("cpu", "mps")


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Where a step is inside autocast, too, the precision of its products is ours to choose."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def _of_one_shape(matrices: list[Tensor]) -> list[Tensor]:
    first = matrices[0]
    made = torch.bfloat16 if multiplies_in_bfloat16(first.device) else first.dtype
    if first.device.type == "cpu" and min(first.shape) >= _LARGE:
        return [
            polar.orthogonalize(each.to(_dtype(each))).to(made).contiguous() for each in matrices
        ]
    stack = torch.stack(matrices)
    return list(polar.orthogonalize(stack.to(_dtype(stack))).to(made).contiguous().unbind())


def _dtype(stack: Tensor) -> torch.dtype:
    """bfloat16 where that multiplies faster: on accelerators, and on CPUs that have it built in.

    The momentum is float32 in either case. What does not fill a CPU's units gains nothing there.
    """
    if multiplies_in_bfloat16(stack.device):
        return torch.bfloat16
    fills = stack.device.type == "cpu" and min(stack.shape[-2:]) >= _SMALLEST_LOW
    return torch.bfloat16 if fills and _cpu_has_bfloat16() else stack.dtype


@cache
def _cpu_has_bfloat16() -> bool:
    # torch has no public word for it; one that has not this one either stays with float32.
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked and asked())
