"""Gradients whose rows and columns are balanced: which of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hf_relopt.backends.matrices import Matrices
from hf_relopt.backends.sinkhorn import balance
from hf_relopt.step.matrices import MatrixSlot, by_option, in_place, sums_across

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle
    from hf_relopt.step.decide import Verdict
    from hf_relopt.step.numbers import Numbers


def balance_all(
    bundles: Sequence[Bundle],
    slots: Sequence[MatrixSlot],
    found: Sequence[list[Tensor]],
    verdicts: Mapping[Numbers, Verdict],
) -> None:
    """Put the balanced gradients in the place of each that is to be so."""
    for iterations, some in by_option(slots, "iterations"):
        matrices: list[Matrices] = []
        homes: list[MatrixSlot] = []
        for each in some:
            grad = found[each.bundle][each.place]
            matrices += each.matrices(grad, each.size(bundles, verdicts))
            homes += [each] * len(each.views)
        in_place(some, found, balance(matrices, iterations, sums_across(homes)))
