"""How many bytes weights, gradients and optimizer state take on one rank."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_relopt.lns.format import FORMATS
from hf_relopt.lns.tensor import LNSTensor, lns_of
from hf_relopt.options.method import Method, method_of
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans.entries import preset_of, rule_of_name
from hf_relopt.plans.plan import CUTTING, Plan
from hf_relopt.rules.rule import FACTORS, NEURONS
from hf_relopt.step.state import SCALARS, factor_forms, slices

STATE_BYTES = 4  # float32, whatever the weights are


@dataclass(frozen=True)
class Footprint:
    """Bytes on the rank that holds most; buffers, activations and temporary memory do not count.

    Attributes:
        weights: all of them, frozen ones, too.
        gradients: of all trainable weights, in the weights' dtype; of those that step inside the
            backward pass, of the largest alone.
        all_gradients: of all trainable weights, as other optimizers keep them.
        state: of the plan's optimizer.
        adamw_state: of torch's AdamW over the same weights: two moments in the weights' dtype.
    """

    weights: int
    gradients: int
    all_gradients: int
    state: int
    adamw_state: int


def footprint(params: Iterable[Tensor], plan: Plan, *, itemsize: int, ranks: int = 1) -> Footprint:
    """Bytes on one rank, from shapes alone.

    Args:
        params: each weight of the model once; shapes are those of whole tensors.
        plan: what is trained, and by which rule.
        itemsize: bytes of one entry of a weight.
        ranks: parts into which FSDP2 cuts the first dimension of each weight, at least 1.
    """
    trained: list[tuple[tuple[int, int], int]] = []
    kept = [held(entry.param, ranks) for entry in plan.skipped]
    passing: list[int] = []
    for entry in plan.entries:
        options, numel = plan.options_of(entry), held(entry.param, ranks)
        trained.append((state_of_weight(options, entry.param, ranks), numel))
        (passing if options.get("step_in_backward") else kept).append(numel)
    return Footprint(
        weights=sum(_bytes(param, itemsize, ranks) for param in params),
        gradients=itemsize * (sum(kept) + max(passing, default=0)),
        all_gradients=itemsize * (sum(kept) + sum(passing)),
        state=sum(per_entry * numel + few for (per_entry, few), numel in trained),
        adamw_state=sum(2 * itemsize * numel + STATE_BYTES for _, numel in trained),
    )


@dataclass(frozen=True)
class MatrixState:
    """Bytes of state of a matrix that is one block.

    Attributes:
        entry, tensor: for each entry, and for the tensor.
        line: for each row and each column.
        neuron: for each row or each column, whichever are more.
    """

    entry: int
    tensor: int
    line: int
    neuron: int


def state_of_matrix(optim: str, options: Mapping[str, Any]) -> MatrixState:
    """Of a matrix under ``optim``, whatever its shape."""
    preset = preset_of(optim)
    given = {**(preset.others if preset else {}), **options, "rule": rule_of_name(optim)}
    whole = {name: value for name, value in given.items() if name not in CUTTING}
    matrix = torch.empty(2, 2, device="meta")
    if given["rule"] == "integer_madam":
        matrix = LNSTensor.without_values(matrix.shape, FORMATS["lns8"])
    method = _method(whole, matrix)
    factors = factor_forms(method, matrix.shape)
    entry, few = state_of_weight(whole, matrix)
    few -= STATE_BYTES * sum(math.prod(form.shape) for form in factors.values())
    line = STATE_BYTES if FACTORS[0] in factors else 0
    return MatrixState(entry, few, line, neuron=STATE_BYTES if NEURONS in factors else 0)


def state_of_weight(given: Mapping[str, Any], param: Tensor, ranks: int = 1) -> tuple[int, int]:
    """Bytes of state for each entry of a weight, and for the tensor."""
    method, few = _method(given, param), STATE_BYTES * len(SCALARS)
    per_entry = sum(dtype.itemsize for dtype in method.buffers.values())
    # Numbers of rows lie where the rows do.
    cut = ranks if method.scale == "row" else 1
    each = -(-slices(method, param.shape) // cut) if method.slice_numbers else 0
    few += STATE_BYTES * len(method.slice_numbers) * each
    for shape, dims in factor_forms(method, param.shape).values():
        # Of the columns of a matrix every rank has all.
        cut = ranks if 0 in dims else 1
        few += STATE_BYTES * held(torch.empty(shape, device="meta"), cut)
    return per_entry, few


def _bytes(param: Tensor, itemsize: int, ranks: int) -> int:
    """Of a weight on a rank."""
    codes = lns_of(param)
    if codes is None:
        return itemsize * held(param, ranks)
    return held(codes.packed, ranks) + STATE_BYTES * held(codes.scale, ranks)


def _method(given: Mapping[str, Any], param: Tensor) -> Method:
    """What a weight follows, with defaults for what is not given."""
    options = OPTIONS[given["rule"]]
    group = {"rule": given["rule"], "role": given.get("role")}
    group.update({name: given.get(name, option.default) for name, option in options.items()})
    return method_of(group, param)


def held(param: Tensor, ranks: int) -> int:
    """Entries of the largest of ``ranks`` parts: FSDP2 cuts the first dimension and rounds up."""
    if ranks == 1 or param.dim() == 0 or param.numel() == 0:
        return param.numel()
    rows = param.shape[0]
    return -(-rows // ranks) * (param.numel() // rows)
