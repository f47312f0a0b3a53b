"""Gradients whose rows and columns are balanced: which of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hf_relopt.backends.sinkhorn import balance
from hf_relopt.step.matrices import MatrixSlot, in_place, together

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle, Source
    from hf_relopt.step.decide import Verdict
    from hf_relopt.step.numbers import Numbers


def balance_all(
    bundles: Sequence[Bundle],
    slots: Sequence[MatrixSlot],
    found: Sequence[list[Source]],
    verdicts: Mapping[Numbers, Verdict],
) -> None:
    """Put the balanced gradients in the place of each that is to be so."""
    for each in together(slots, "iterations", found, lambda slot: slot.size(bundles, verdicts)):
        in_place(each.slots, found, balance(each.matrices, each.value, each.across))
