"""How many bytes weights, gradients and optimizer state take on one rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from hf_relopt.groups import Plan
from hf_relopt.optim.rules import RULES

STATE_BYTES = 4  # float32, whatever the weights are


@dataclass(frozen=True)
class Footprint:
    """Bytes on the rank that holds most; buffers, activations and temporary memory do not count.

    Attributes:
        weights: all of them, frozen ones, too.
        gradients: of all trainable weights, in the weights' dtype.
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
    trained = [(entry.options["rule"], held(entry.param, ranks)) for entry in plan.entries]
    computed = [held(entry.param, ranks) for entry in (*plan.entries, *plan.skipped)]
    return Footprint(
        weights=itemsize * sum(held(param, ranks) for param in params),
        gradients=itemsize * sum(computed),
        state=sum(
            STATE_BYTES * (len(RULES[rule].buffers) * numel + len(RULES[rule].scalars))
            for rule, numel in trained
        ),
        adamw_state=sum(2 * itemsize * numel + STATE_BYTES for _, numel in trained),
    )


def held(param: Tensor, ranks: int) -> int:
    """Entries of the largest of ``ranks`` parts: FSDP2 cuts the first dimension and rounds up."""
    if ranks == 1 or param.dim() == 0 or param.numel() == 0:
        return param.numel()
    rows = param.shape[0]
    return -(-rows // ranks) * (param.numel() // rows)
