"""Ways to run the same step: one dict, one word in the ``backend`` option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_relopt.backends import compiled, foreach, loop, sums
from hf_relopt.backends.orthogonalize import orthogonalize
from hf_relopt.backends.part import Decision, Direct, Equation, Part
from hf_relopt.rules.rule import Sums


@dataclass(frozen=True)
class Backend:
    """The verbs of the step, each for parts of one device, dtype and method.

    Attributes:
        sums: norms and cosines of every slice, [S, 1 to 3].
        update: an equation on every part, in place: the rule's, or that of the moments.
        orthogonalize: [rows, columns] matrices -> the orthogonalized ones.
        step_alone: if there is one, it comes first where nothing is sharded and the method is
            direct: it takes parts one by one from their sums to the new weights, while what the
            sums have read is still in the cache, and returns the places of those it left.
    """

    sums: Callable[[Sequence[Part], Sums], Tensor]
    update: Callable[[Sequence[Part], Equation, Decision], None]
    orthogonalize: Callable[[Sequence[Tensor]], list[Tensor]]
    step_alone: Callable[[Direct], list[int]] | None = None


BACKENDS: dict[str, Backend] = {
    "loop": Backend(sums.sums, loop.update, orthogonalize),
    "foreach": Backend(sums.sums, foreach.update, orthogonalize),
    "compiled": Backend(compiled.sums, compiled.update, orthogonalize, compiled.step_alone),
}
# What "auto" stands for. docs/decisions.md says why it is not "compiled" on a CPU.
AUTO = "foreach"


def backend_of(name: str) -> Backend:
    """The backend that a ``backend`` option names."""
    return BACKENDS[AUTO if name == "auto" else name]
