"""The optimizer Fromage."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_relopt.optim.base import RelativeOptimizer


class Fromage(RelativeOptimizer):
    """Every step turns and stretches each weight tensor by the same fraction ``lr`` of its norm.

    State is three numbers per tensor. The step length follows the weights, not the gradients, so
    ``lr`` must decay to end the training: use a schedule.

    Args:
        params: tensors, named tensors or param groups.
        lr: relative step, 0 <= lr < 1; a float or a 0-dim tensor. 0.01 from scratch, 0.001 for
            fine-tuning.
        p_bound: largest norm of a weight in units of its norm at the first step, > 0; None for no
            bound. Tensors that start at zero have none.
        min_scale: root mean square, >= 0, by which a tensor that starts at zero is measured until
            it is larger itself. 0 is the paper's rule, under which such tensors never move.
        rounding: how bfloat16 and float16 weights are written: "stochastic" (also None) or
            "nearest". Other dtypes take no notice.
        seed: of the rounding noise.
        backend: "loop", "foreach" or "compiled".
        maximize: ascend instead of descend.

    Raises:
        ConfigError: for an unknown option, a value out of range, a non-zero weight_decay in a
            group, an empty or doubled parameter list.

    Source: arXiv 2002.03432, algorithm 1.
    """

    rule = "fromage"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        *,
        p_bound: float | None = None,
        min_scale: float = 1e-1,
        rounding: str | None = None,
        seed: int = 0,
        backend: str = "foreach",
        maximize: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(
            params,
            unknown,
            lr=lr,
            p_bound=p_bound,
            min_scale=min_scale,
            rounding=rounding,
            seed=seed,
            backend=backend,
            maximize=maximize,
        )
