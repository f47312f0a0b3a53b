"""Weights in codes: how a step reads and writes them, whatever else a backend does.

Codes are unpacked, stepped and packed again in pieces of a few rows, so that a whole step has no
more than these pieces in numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_relopt.backends.part import Decision, Equation, Part, piece_size
from hf_relopt.lns.packing import pack_rows, unpack_rows
from hf_relopt.lns.squares import decode_squares, encode_squares
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.rules.rounding import two_noises


def update(parts: Sequence[Part], equation: Equation, decision: Decision) -> None:
    """Step every part in place: codes, and the second moment in float32 or in codes of its own."""
    for part in parts:
        weight = part.weight
        assert isinstance(weight, LNSTensor)
        rows = max(1, piece_size(weight.device) // max(1, weight.columns))
        decided = decision.shaped(part.view.first, 1, 2)
        for begin in range(0, len(weight.packed), rows):
            _step_rows(part, weight, slice(begin, begin + rows), equation, decided)


def _step_rows(
    part: Part, weight: LNSTensor, rows: slice, equation: Equation, decided: Decision
) -> None:
    form, columns, packed = weight.form, weight.columns, weight.packed[rows]
    codes = unpack_rows(packed, form.bits, columns)
    shape = codes.shape
    grad = part.source.reshape(-1, columns)[rows].to(torch.float32)
    if equation.maximize:
        grad = -grad
    kept, *top = part.buffers
    kept = kept.view(-1, columns)[rows]
    own_top = top[0].view(-1, 1)[rows] if top else None
    second_moment = kept if own_top is None else decode_squares(kept, own_top)
    assert decided.keys is not None
    for_weight, for_moment = two_noises(decided.keys, _positions(part, rows, shape))
    level = codes & form.levels
    new, new_moment = equation.update(
        level,
        grad,
        second_moment,
        is_negative=(codes & form.sign_bit) != 0,
        bits=for_weight,
        spacing=form.spacing,
        levels=form.levels,
        **decided.coefficients,
        **equation.constants,
    )
    new_packed = pack_rows(codes - level + new, form.bits)
    packed.copy_(torch.where(decided.move, new_packed, packed))
    if own_top is None:
        kept.copy_(torch.where(decided.learn, new_moment, kept))
        return
    new_kept, new_top = encode_squares(new_moment, for_moment)
    kept.copy_(torch.where(decided.learn, new_kept, kept))
    own_top.copy_(torch.where(decided.learn, new_top, own_top))


def count_ends(weight: LNSTensor) -> Tensor:
    """How many entries are at the largest level, at the smallest, and zero: int64 [3]."""
    form, rows = weight.form, max(1, piece_size(weight.device) // max(1, weight.columns))
    found = torch.zeros(3, dtype=torch.int64, device=weight.device)
    for packed in weight.packed.split(rows):
        level = unpack_rows(packed, form.bits, weight.columns) & form.levels
        found += torch.stack([torch.count_nonzero(level == q) for q in (form.levels, 1, 0)])
    return found


def _positions(part: Part, rows: slice, shape: torch.Size) -> Tensor:
    """Each entry's place in the whole weight, int32 (wrapping beyond 2^32)."""
    begin = part.view.origin + rows.start * shape[1]
    positions = torch.arange(begin, begin + shape.numel(), device=part.source.device)
    return positions.to(torch.int32).view(shape)
