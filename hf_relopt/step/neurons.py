"""Orthogonalized momenta over the usual sizes of their neurons: which together, what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hf_relopt.backends.neurons import Neurons, even
from hf_relopt.rules.rule import NEURONS
from hf_relopt.sharding.layout import local
from hf_relopt.step.matrices import MatrixSlot, in_place, together
from hf_relopt.step.state import neurons_are_rows

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle, Source
    from hf_relopt.step.decide import Verdict
    from hf_relopt.step.numbers import Numbers


def even_all(
    bundles: Sequence[Bundle],
    slots: Sequence[MatrixSlot],
    found: Sequence[list[Source]],
    verdicts: Mapping[Numbers, Verdict],
) -> None:
    """Let the sizes of neurons take the directions in; put what comes of them in their places."""
    for each in together(slots, "beta", found, lambda slot: None):
        kept: list[Neurons] = []
        for slot in each.slots:
            are_rows = neurons_are_rows(slot.slot.method, slot.slot.layout.shape)
            state, learn = local(slot.slot.state[NEURONS]), slot.learns(bundles, verdicts)
            for view in slot.views:
                sizes = slot.rows_of(state, view) if are_rows else slot.columns_of(state, view)
                kept.append(Neurons(sizes, "columns" if are_rows else "rows", learn))
        in_place(each.slots, found, even(each.matrices, kept, each.value, each.across))
