"""Gradients over the usual sizes of their rows and columns: which together, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hf_relopt.backends.factored import Factors, follow
from hf_relopt.backends.matrices import Matrices
from hf_relopt.rules.rule import FACTORS
from hf_relopt.sharding.layout import local
from hf_relopt.step.matrices import MatrixSlot, by_option, in_place, sums_across

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle
    from hf_relopt.step.decide import Verdict
    from hf_relopt.step.numbers import Numbers


def follow_all(
    bundles: Sequence[Bundle],
    slots: Sequence[MatrixSlot],
    found: Sequence[list[Tensor]],
    verdicts: Mapping[Numbers, Verdict],
) -> None:
    """Let the factors take the gradients in; put the directions in their places."""
    for beta, some in by_option(slots, "beta"):
        matrices: list[Matrices] = []
        factors: list[Factors] = []
        homes: list[MatrixSlot] = []
        for each in some:
            bundle = bundles[each.bundle]
            learn = verdicts[bundle.numbers].judged.learn[bundle.begin + each.place]
            rows, columns = (local(each.slot.state[name]) for name in FACTORS)
            for view in each.views:
                own = each.rows_of(rows, view), each.columns_of(columns, view)
                factors.append(Factors(*own, learn))
            grad = found[each.bundle][each.place]
            matrices += each.matrices(grad, each.size(bundles, verdicts))
            homes += [each] * len(each.views)
        results = follow(matrices, factors, beta, sums_across(homes))
        in_place(some, found, results)
