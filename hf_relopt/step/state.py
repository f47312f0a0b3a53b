"""What an optimizer keeps of each weight: three numbers, and the moments of its method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_relopt.options.method import Method, method_of
from hf_relopt.rules.rule import NEURONS, RUNNING_NUMBERS, SQUARES_TOP
from hf_relopt.sharding.layout import zeros_along

State = dict[str, Tensor]

# Two counts that every rule keeps: of steps, and of gradients that were not finite.
SCALARS = ("step", "skipped")
# What is packed for all weights: these, and what there is of each slice.
OF_SLICES = ("anchor_norm", *RUNNING_NUMBERS)
NUMBERS = (*SCALARS, *OF_SLICES)


def new_buffers(method: Method, param: Tensor) -> State:
    """Empty moments and factors."""
    made = {
        name: torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
        for name, dtype in method.buffers.items()
    }
    for name, (shape, dims) in factor_forms(method, param.shape).items():
        made[name] = zeros_along(param, shape, dims)
    return made


class FactorForm(NamedTuple):
    """The shape of a factor, and the dimensions that it shares with its weight."""

    shape: tuple[int, ...]
    dims: list[int]


def factor_forms(method: Method, shape: torch.Size) -> dict[str, FactorForm]:
    """Those of a weight's factors, which have one entry for all columns of a row, or all rows.

    Where blocks follow each other along these, there is one for each block. A convolution's
    dimensions after the first are columns.
    """
    found: dict[str, FactorForm] = {}
    for name in method.factors:
        if name == SQUARES_TOP:
            found[name] = FactorForm((shape[0], *[1] * (len(shape) - 1)), [0])
            continue
        rows, cut = int(method.in_experts), method.options["split_dim"]
        if name == "row_rms" or (name == NEURONS and neurons_are_rows(method, shape)):
            dims = list(range(rows + 1))
        else:
            dims = [dim for dim in range(len(shape)) if dim != rows]
        sizes = [size if dim in dims else 1 for dim, size in enumerate(shape)]
        if cut not in dims:
            sizes[cut] = 1 if method.in_experts else slices(method, shape)
        found[name] = FactorForm(tuple(sizes), dims)
    return found


def neurons_are_rows(method: Method, shape: torch.Size) -> bool:
    """True if a weight's matrices, or the largest of its blocks, have as many rows as columns.

    Along the longer side of an orthogonalized matrix sizes differ.
    """
    rows, *columns = shape[1:] if method.in_experts else shape
    if method.scale == "block" and not method.in_experts:
        largest = max(method.blocks(shape))
        if method.options["split_dim"] == 0:
            rows = largest
        else:
            columns = [largest]
    return rows >= math.prod(columns)


def slices(method: Method, shape: torch.Size) -> int:
    """How many slices a tensor has, each with its anchor: one, or one per block or row."""
    if method.scale == "row":
        return shape[0]
    return len(method.blocks(shape)) if method.scale == "block" else 1


def widest(device: torch.device) -> torch.dtype:
    """What norms and coefficients are computed in: float64, or float32 where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def has_state(state: Mapping[str, Any]) -> bool:
    """True once a weight's own state is made; wrappers may have put theirs there before."""
    return "skipped" in state


def state_fault(group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]) -> str | None:
    """What of a weight's state does not fit the options of its group, in words; None if all does.

    Looks at names, shapes and dtypes, and at no value. Names that the rule does not know belong to
    others, who may count steps there as well.
    """
    method = method_of(group, param)
    if not set(method.state) & (set(state) - {"step"}):
        return None
    missing = sorted(set(method.state) - set(state))
    if missing:
        there = ", ".join(sorted(map(str, state)))
        return f"{', '.join(missing)} is missing for a weight under {group['rule']}; it has {there}"
    for name in sorted(method.state):
        value = state[name]
        if not isinstance(value, Tensor):
            return f"{name} is {value!r} ({type(value).__name__}), not a tensor"
        if value.layout is not torch.strided:
            return f"{name} is sparse ({value.layout})"
        if value.is_meta and not param.is_meta:
            return f"{name} is on the meta device, where tensors hold no values"
        shape, dtype = _form(method, param.shape, name)
        # A single number may have a dimension or none.
        if tuple(value.shape) != shape and not value.numel() == math.prod(shape) == 1:
            return f"{name} has shape {tuple(value.shape)} in place of {shape}"
        if value.dtype != dtype:
            return f"{name} has dtype {value.dtype} in place of {dtype}"
    return None


def _form(method: Method, shape: torch.Size, name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of a state tensor."""
    if name in OF_SLICES:
        return (slices(method, shape),), torch.float32
    if name in method.buffers:
        return tuple(shape), method.buffers[name]
    if name in method.factors:
        return factor_forms(method, shape)[name].shape, torch.float32
    return (), torch.float32
