"""How many bytes weights, gradients and optimizer state take on one rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_relopt.options.method import method_of
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans.entries import preset_of, rule_of_name
from hf_relopt.plans.plan import CUTTING, Plan
from hf_relopt.step.state import SCALARS, dims_of_factor, factor_shapes, slices

STATE_BYTES = 4  # float32, whatever the weights are


@dataclass(frozen=True)
class Footprint:
    """Bytes on the rank that holds most; buffers, activations and temporary memory do not count.

    Attributes:
        weights: all of them, frozen ones, too.
        gradients: of all trainable weights, in the weights' dtype; of those that step inside the
            backward pass, of the largest alone.
        state: of the plan's optimizer.
        adamw_state: of torch's AdamW over the same weights: two moments in the weights' dtype.
    """

    weights: int
    gradients: int
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
    passing = [0]
    for entry in plan.entries:
        options, numel = plan.options_of(entry), held(entry.param, ranks)
        trained.append((state_of_weight(options, entry.param, ranks), numel))
        (passing if options.get("step_in_backward") else kept).append(numel)
    return Footprint(
        weights=itemsize * sum(held(param, ranks) for param in params),
        gradients=itemsize * (sum(kept) + max(passing)),
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
    sizes = (2, 2), (3, 2), (3, 3)
    each = [state_of_weight(whole, torch.empty(size, device="meta")) for size in sizes]
    (entry, small), (_, taller), (_, larger) = each
    row, column = taller - small, larger - taller
    line, neuron = (row, 0) if column else (0, row)
    return MatrixState(entry, small - 4 * line - 2 * neuron, line, neuron)


def state_of_weight(given: Mapping[str, Any], param: Tensor, ranks: int = 1) -> tuple[int, int]:
    """Bytes of state for each entry of a weight, and for the tensor."""
    options = OPTIONS[given["rule"]]
    group = {"rule": given["rule"], "role": given.get("role")}
    group.update({name: given.get(name, option.default) for name, option in options.items()})
    method, few = method_of(group, param), STATE_BYTES * len(SCALARS)
    per_entry = sum(dtype.itemsize for dtype in method.buffers.values())
    # Numbers of rows lie where the rows do.
    cut = ranks if method.scale == "row" else 1
    each = -(-slices(method, param.shape) // cut) if method.slice_numbers else 0
    few += STATE_BYTES * len(method.slice_numbers) * each
    for name, shape in factor_shapes(method, param.shape).items():
        # Of the columns of a matrix every rank has all.
        cut = ranks if 0 in dims_of_factor(method, param.shape, name) else 1
        few += STATE_BYTES * held(torch.empty(shape, device="meta"), cut)
    return per_entry, few


def held(param: Tensor, ranks: int) -> int:
    """Entries of the largest of ``ranks`` parts: FSDP2 cuts the first dimension and rounds up."""
    if ranks == 1 or param.dim() == 0 or param.numel() == 0:
        return param.numel()
    rows = param.shape[0]
    return -(-rows // ranks) * (param.numel() // rows)
