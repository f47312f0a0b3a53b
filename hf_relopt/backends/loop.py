"""The reference: one part after the other, in pieces that fit the cache."""

from __future__ import annotations

from collections.abc import Sequence

from hf_relopt.backends.kernel import write
from hf_relopt.backends.part import Decision, Equation, Part, piece_size, pieces


def update(parts: Sequence[Part], equation: Equation, decision: Decision) -> None:
    """Step every part in place."""
    for part in parts:
        update_one(part, equation, decision)


def update_one(part: Part, equation: Equation, decision: Decision) -> None:
    """Step one part in place."""
    noisy = decision.keys is not None
    for piece in pieces(part.tensors, part.view, piece_size(part.weight.device)):
        decided = decision.shaped(piece.first, piece.count, piece.tensors[0].dim())
        write(piece.tensors, equation, decided, piece.positions() if noisy else None)
