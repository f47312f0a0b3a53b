"""The optimizer Madam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from hf_relopt.optim.base import RelativeOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MadamOptions(TypedDict, total=False):
    """Types of Madam's options; options/tables.py has their defaults and what is allowed."""

    beta: float
    p_scale: float
    g_bound: float
    min_scale: float
    rounding: str | None
    seed: int
    backend: str
    maximize: bool
    step_in_backward: bool


class Madam(RelativeOptimizer):
    """Every step multiplies each entry of a weight; signs never change.

    State is 4 bytes per weight (the second moment, float32) and three numbers per tensor.

    Args:
        params: tensors, named tensors or param groups.
        lr: learning rate: the typical relative change of an entry per step, 0 <= lr < 1; a float
            or a tensor of one number. The paper uses 0.01 for everything.
        beta: decay of the second moment, in [0, 1).
        p_scale: largest entry in units of the weight's root mean square at the first step, > 0.
            Entries that start outside stay where they are or shrink.
        g_bound: largest normalised gradient, > 0: an entry changes by exp(lr * g_bound) at most.
        min_scale: s >= 0 of the additive rule W <- W - lr * s * g/rms(g) that a tensor follows
            that starts at zero, since no multiplication moves it.
        rounding: how bfloat16 and float16 weights are written: "stochastic" (also None) or
            "nearest". Other dtypes ignore it.
        seed: seed of the rounding noise.
        backend: "auto" (the fastest for the device), "loop", "foreach", "compiled" or "triton".
        maximize: ascend instead of descend.
        step_in_backward: step each weight inside ``backward()``, as soon as its gradient is
            complete, and drop the gradient; ``step()`` still ends the step. Not with gradient
            accumulation, clipping, a GradScaler, or DDP.

    Entries that are exactly zero in a tensor that is not stay zero, and gradients below 1e-19 count
    as zero (their squares are no float32 numbers).

    Raises:
        ConfigError: an unknown option, a value out of range, a non-zero weight_decay in a group, an
            empty parameter list, or a parameter that is listed twice.

    Source: arXiv 2006.14560, algorithm 1.
    """

    rule = "madam"

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, **options: Unpack[MadamOptions]
    ) -> None:
        super().__init__(params, lr, **options)
