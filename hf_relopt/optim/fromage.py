"""The optimizer Fromage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from hf_relopt.optim.base import RelativeOptimizer
from hf_relopt.options.method import OF_MATRICES, check_matrices

if TYPE_CHECKING:
    from typing_extensions import Unpack


class FromageOptions(TypedDict, total=False):
    """Types of Fromage's options; options/tables.py has their defaults and what is allowed."""

    direction: str
    scale: str
    bound: str | None
    p_bound: float | None
    lr_factor: float | None
    momentum: float | None
    nesterov: bool | None
    beta: float | None
    iterations: int | None
    split_dim: int | None
    split_sizes: int | Sequence[int] | None
    momentum_dtype: str | None
    share_work: bool
    min_scale: float
    rounding: str | None
    seed: int
    backend: str
    maximize: bool
    step_in_backward: bool


class Fromage(RelativeOptimizer):
    """Every step moves each weight tensor by the same fraction ``lr`` of its norm.

    The length of a step depends on the weights, not on the gradients, so the learning rate must
    decay: use a schedule. The defaults are the paper's rule; its state is three numbers per tensor.
    ``direction`` sets the direction of a step, ``scale`` the norm it is a fraction of, ``bound``
    and ``p_bound`` what limits the norms. With any direction but the gradient, vectors (biases,
    norm weights) are stepped elementwise, by ``lr * max(RMS(W0), min_scale)``, and weights that
    start at zero by ``lr * min_scale`` (root mean square).

    Args:
        params: tensors, named tensors or param groups.
        lr: learning rate: the relative length of a step, 0 <= lr < 1; a float or a tensor of one
            number. 0.01 from scratch, 0.001 for fine-tuning.
        direction: "gradient"; "momentum"; "spectral", the orthogonalized momentum, as in Muon;
            "adam", the momentum over the root of the second moment; "rms", the gradient over a
            running root mean square of the gradients of its tensor, row or block; "sinkhorn", the
            gradient with rows and columns alternately scaled to one size; "factored", the gradient
            over the running sizes of its rows and columns. State is 0, 4, 4, 8, 0, 0 and 0 bytes
            per weight; of "factored" 4 for each row and column, of "spectral" with a beta 4 more
            for each neuron.
        scale: the norm is that of the full "tensor", of each "row" (index of the first dimension,
            for embeddings; rows without gradient are left alone), or of each "block". A row or a
            block that starts with much less than its share of the tensor's norm, as a new token's
            row does, is stepped as if it had that share, at 10 times ``lr`` up to 0.01.
        bound: "sphere" keeps each norm as it was at the first step; None leaves it to ``p_bound``.
        p_bound: largest norm of a weight in units of its norm at the first step, > 0; None for no
            bound under the paper's rule, and for 4.0 in all other cases, where successive steps may
            add up. Tensors that start at zero have none.
        lr_factor: a factor on ``lr`` for a group, in (0, 100], with a product below 1; None: 1. A
            schedule or a loop may still set one learning rate for all groups.
        momentum: decay of the momentum buffer, in [0, 1); None: 0.9.
        nesterov: look one gradient ahead; None: yes for "momentum" and "spectral".
        beta: decay of the second moment, in [0, 1); None: 0.999 for "adam", 0.99 for "rms" and
            "factored". With one, "spectral" gives the neurons of a matrix one usual size.
        iterations: how often "sinkhorn" scales rows and columns, 1 to 100; None: 5.
        split_dim: the dimension along which scale "block" splits; None: 0.
        split_sizes: a count of equal blocks, or their sizes; None: one block per index of the first
            dimension, for tensors of three dimensions (experts).
        momentum_dtype: "bfloat16" halves the momentum's state, rounded stochastically; None:
            float32.
        share_work: for DDP, where every process has all weights and the same gradients: each
            orthogonalizes its share of the "spectral" matrices, and the results are gathered. True
            on all ranks or on none.
        min_scale: root mean square, >= 0, that stands in for that of a tensor that starts at zero,
            until its own is larger. With 0, the paper's rule, such tensors never move.
        rounding: how bfloat16 and float16 weights are written: "stochastic" (also None) or
            "nearest". Other dtypes ignore it.
        seed: seed of the rounding noise.
        backend: "auto" (the fastest for the device), "loop", "foreach", "compiled" or "triton".
        maximize: ascend instead of descend.
        step_in_backward: step each weight inside ``backward()``, as soon as its gradient is
            complete, and drop the gradient; ``step()`` still ends the step. Not with gradient
            accumulation, clipping, a GradScaler, or DDP.

    Raises:
        ConfigError: an unknown option, a value out of range, a non-zero weight_decay in a group, an
            empty parameter list, or a parameter that is listed twice.

    Source: arXiv 2002.03432, algorithm 1. The directions' sources are in rules/moments.py,
    rules/orthogonalize.py, rules/neurons.py, rules/sinkhorn.py and
    rules/factored.py.
    """

    rule = "fromage"

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, **options: Unpack[FromageOptions]
    ) -> None:
        super().__init__(params, lr, **options)
        if self.defaults["direction"] in OF_MATRICES:
            check_matrices(self.param_groups)
