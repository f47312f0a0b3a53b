"""Gradients over the usual sizes of their rows and columns: which together, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hf_relopt.backends.factored import Factors, follow
from hf_relopt.backends.matrices import Matrices
from hf_relopt.backends.part import View
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
            factors += [_factors(each, view, learn) for view in each.views]
            matrices += each.matrices(bundles, found, verdicts)
            homes += [each] * len(each.views)
        results = follow(matrices, factors, beta, sums_across(homes))
        in_place(some, found, results)


def _factors(home: MatrixSlot, view: View, learn: Tensor) -> Factors:
    """The state of a view's matrices, as views of it."""
    rows, columns = (local(home.slot.state[name]) for name in FACTORS)
    if home.slot.method.in_experts:
        return Factors(view.of(rows).flatten(1), view.of(columns).flatten(1), learn)
    by_columns = home.slot.slices.dim > 0
    if view.narrow is None:
        # Of blocks along columns a row has a number for each of them.
        rows = rows.t() if by_columns else rows.view(view.count, -1)
        return Factors(rows, columns.view(view.count, -1), learn)
    _, begin, length = view.narrow
    if by_columns:
        rows, columns = rows[:, view.first], columns[:, begin : begin + length]
    else:
        rows, columns = rows[begin : begin + length], columns[view.first]
    return Factors(rows.view(1, -1), columns.view(1, -1), learn)
