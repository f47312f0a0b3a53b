"""The optimizer Integer Madam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from hf_relopt.backends.backend import backend_of_codes
from hf_relopt.errors import ConfigError
from hf_relopt.lns.tensor import is_lns
from hf_relopt.optim.base import RelativeOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class IntegerMadamOptions(TypedDict, total=False):
    """Types of Integer Madam's options; options/tables.py has their defaults."""

    beta: float
    p_scale: float
    g_bound: float
    min_scale: float
    second_moment: str
    rounding: str | None
    seed: int
    backend: str
    maximize: bool
    step_in_backward: bool


class IntegerMadam(RelativeOptimizer):
    """Madam for weights that are stored in 8 to 16 bits: steps are whole numbers of levels.

    The weights are those of a model that ``hf_relopt.compress`` has converted, or that was loaded
    with ``hf_relopt.LNSConfig``; their format comes with them, and so does the largest value that
    an entry can have, the scale of its row. What beside them is of plain numbers (norms, biases)
    follows Madam. State is one byte per weight, four per row, and two numbers per tensor.

    Args:
        params: tensors, named tensors or param groups; at least one of them in codes.
        lr: learning rate: the typical relative change of an entry per step, 0 <= lr < 1; a float
            or a tensor of one number. Levels are ``spacing`` apart (0.04 in "lns8"), and a step of
            lr / spacing levels is rounded to a whole number stochastically.
        beta: decay of the second moment, in [0, 1).
        g_bound: largest normalised gradient, > 0: an entry changes by exp(lr * g_bound) at most.
        second_moment: how that of weights in codes is kept: "lns8", one byte per weight, or
            "float32", four.
        p_scale: of the weights in plain numbers, see Madam.
        min_scale: the same.
        rounding: the same.
        seed: seed of the rounding noise.
        backend: see Madam; codes are stepped by eager code, or compiled, on any device, and
            "triton" is refused.
        maximize: ascend instead of descend.
        step_in_backward: step each weight inside ``backward()``, see Madam.

    Entries that are exactly zero stay zero, and signs never change.

    Raises:
        ConfigError: no weight is in codes, or the backend is "triton"; else as for Madam.

    Source: arXiv 2006.14560, section 4; docs/integer-madam.md says what is ours.
    """

    rule = "integer_madam"

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, **options: Unpack[IntegerMadamOptions]
    ) -> None:
        super().__init__(params, lr, **options)
        members = [param for group in self.param_groups for param in group["params"]]
        if not any(map(is_lns, members)):
            raise ConfigError(
                f"None of the {len(members)} weights of this IntegerMadam is stored in codes, and "
                "it does not convert them by itself. Call hf_relopt.compress(model, "
                'format="lns8") before making the optimizer, load the model with '
                'quantization_config=hf_relopt.LNSConfig(format="lns8"), or use Madam.'
            )
        for group in self.param_groups:
            backend_of_codes(group["backend"])
