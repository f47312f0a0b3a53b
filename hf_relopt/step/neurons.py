"""Orthogonalized momenta over the usual sizes of their neurons: which together, what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hf_relopt.backends.matrices import Matrices
from hf_relopt.backends.neurons import Neurons, even
from hf_relopt.rules.rule import NEURONS
from hf_relopt.sharding.layout import local
from hf_relopt.step.matrices import MatrixSlot, by_option, in_place, sums_across
from hf_relopt.step.state import neurons_are_rows

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle
    from hf_relopt.step.decide import Verdict
    from hf_relopt.step.numbers import Numbers


def even_all(
    bundles: Sequence[Bundle],
    slots: Sequence[MatrixSlot],
    found: Sequence[list[Tensor]],
    verdicts: Mapping[Numbers, Verdict],
) -> None:
    """Let the sizes of neurons take the directions in; put what comes of them in their places."""
    for beta, some in by_option(slots, "beta"):
        matrices: list[Matrices] = []
        kept: list[Neurons] = []
        homes: list[MatrixSlot] = []
        for each in some:
            bundle = bundles[each.bundle]
            learn = verdicts[bundle.numbers].judged.learn[bundle.begin + each.place]
            direction = found[each.bundle][each.place]
            matrices += each.matrices(direction, direction.new_ones(()))
            are_rows = neurons_are_rows(each.slot.method, each.slot.layout.shape)
            state = local(each.slot.state[NEURONS])
            for view in each.views:
                sizes = each.rows_of(state, view) if are_rows else each.columns_of(state, view)
                kept.append(Neurons(sizes, "columns" if are_rows else "rows", learn))
            homes += [each] * len(each.views)
        in_place(some, found, even(matrices, kept, beta, sums_across(homes)))
