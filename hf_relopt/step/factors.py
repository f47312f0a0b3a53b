"""Gradients over the usual sizes of their rows and columns: which together, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hf_relopt.backends.factored import Factors, follow
from hf_relopt.rules.rule import FACTORS
from hf_relopt.sharding.layout import local
from hf_relopt.step.matrices import MatrixSlot, in_place, together

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle, Source
    from hf_relopt.step.decide import Verdict
    from hf_relopt.step.numbers import Numbers


def follow_all(
    bundles: Sequence[Bundle],
    slots: Sequence[MatrixSlot],
    found: Sequence[list[Source]],
    verdicts: Mapping[Numbers, Verdict],
) -> None:
    """Let the factors take the gradients in; put the directions in their places."""
    for each in together(slots, "beta", found, lambda slot: slot.size(bundles, verdicts)):
        factors: list[Factors] = []
        for slot in each.slots:
            rows, columns = (local(slot.slot.state[name]) for name in FACTORS)
            learn = slot.learns(bundles, verdicts)
            for view in slot.views:
                own = slot.rows_of(rows, view), slot.columns_of(columns, view)
                factors.append(Factors(*own, learn))
        in_place(each.slots, found, follow(each.matrices, factors, each.value, each.across))
