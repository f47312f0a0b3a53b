"""Weights in codes: how a step reads and writes them, whatever else a backend does.

Codes are unpacked, stepped and packed again in pieces of a few rows, so that a whole step has no
more than these pieces in numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends.compiled import compile_once, wrapped
from hf_relopt.backends.part import Decision, Equation, Part, piece_size
from hf_relopt.lns.format import LNSFormat
from hf_relopt.lns.packing import pack_rows, unpack_rows
from hf_relopt.lns.squares import decode_squares, encode_squares
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.rules.rounding import two_noises

# (codes, second moment, grad, decided, origin) -> codes, new second moment, noise for it
Move = Callable[[Tensor, list[Tensor], Tensor, Decision, Tensor], tuple[Tensor, Tensor, Tensor]]
# (second moment and perhaps its tops, new second moment, noise, learn) -> what is to be there
Keep = Callable[[list[Tensor], Tensor, Tensor, Tensor], list[Tensor]]


def update(parts: Sequence[Part], equation: Equation, decision: Decision) -> None:
    """Step every part in place: codes, and the second moment in float32 or in codes of its own."""
    for part in parts:
        _step(part, decision, _move(equation, _codes_of(part).form), _keep)


def update_compiled(parts: Sequence[Part], equation: Equation, decision: Decision) -> None:
    """The same through torch.compile, in two programs: rows are read twice to be encoded."""
    rule = equation.update, tuple(equation.constants.items()), equation.maximize
    for part in parts:
        weight, grad = _codes_of(part), part.source
        move, keep = _compiled(rule, weight.form, len(part.buffers), grad.dtype, grad.device.type)
        _step(part, decision, move, keep)


def _step(part: Part, decision: Decision, move: Move, keep: Keep) -> None:
    """Step one weight, a few rows at a time."""
    weight = _codes_of(part)
    bits, columns = weight.form.bits, weight.columns
    decided = decision.shaped(part.view.first, 1, 2)
    grad = part.source.reshape(-1, columns)
    kept, *top = part.buffers
    state = [kept.view(-1, columns), *[each.view(-1, 1) for each in top]]
    step = _rows_at_once(weight)
    for begin in range(0, len(weight.packed), step):
        rows = slice(begin, begin + step)
        packed, old = weight.packed[rows], [each[rows] for each in state]
        origin = wrapped(part.view.origin + begin * columns, grad.device)
        # Outside of what is compiled: shifts of packed words beside floats leave a compiler without
        # vectors. It makes none of int16 either.
        codes = packed if bits == 8 else unpack_rows(packed, bits, columns).to(torch.int32)
        moved, moment, noise = move(codes, old, grad[rows], decided, origin)
        for target, result in zip(old, keep(old, moment, noise, decided.learn), strict=True):
            target.copy_(result)
        packed.copy_(moved if bits == 8 else pack_rows(moved, bits))
    # Autograd looks at the weight, and not at what it is made of.
    torch.autograd.graph.increment_version(weight)


def _rows_at_once(weight: LNSTensor) -> int:
    return max(1, piece_size(weight.device) // max(1, weight.columns))


def _codes_of(part: Part) -> LNSTensor:
    assert isinstance(part.weight, LNSTensor)
    return part.weight


def _move(equation: Equation, form: LNSFormat) -> Move:
    """What steps codes [rows, columns] by gradients of a float dtype.

    Codes are int32, or uint8 where they are bytes, which need no packing. The origin is int32, the
    position of the first entry in the whole weight (wrapping).
    """

    def move(
        old: Tensor, state: list[Tensor], grad: Tensor, decided: Decision, origin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        codes = old.to(torch.int32)
        gradient = grad.to(torch.float32)
        if equation.maximize:
            gradient = -gradient
        kept, *top = state
        second_moment = decode_squares(kept, top[0]) if top else kept
        assert decided.keys is not None
        place = torch.arange(grad.numel(), dtype=torch.int32, device=grad.device)
        for_weight, for_moment = two_noises(decided.keys, place.view(grad.shape) + origin)
        level = codes & form.levels
        new, new_moment = equation.update(
            level,
            gradient,
            second_moment,
            is_negative=(codes & form.sign_bit) != 0,
            bits=for_weight,
            spacing=form.spacing,
            levels=form.levels,
            **decided.coefficients,
            **equation.constants,
        )
        moved = torch.where(decided.move, codes - level + new, codes)
        return moved.to(old.dtype), new_moment, for_moment

    return move


def _keep(state: list[Tensor], moment: Tensor, noise: Tensor, learn: Tensor) -> list[Tensor]:
    new = encode_squares(moment, noise) if len(state) > 1 else (moment,)
    return [torch.where(learn, now, old) for now, old in zip(new, state, strict=True)]


@cache
def _compiled(
    rule: tuple[Any, tuple[tuple[str, Any], ...], bool],
    form: LNSFormat,
    buffers: int,
    dtype: torch.dtype,
    device: str,
) -> tuple[Move, Keep]:
    """Two programs for rows of any number and length.

    They are kept here, since torch counts what one function was compiled for, and stops at eight.
    """
    update, constants, maximize = rule
    move = compile_once(_move(Equation(update, dict(constants), maximize), form))
    keep = compile_once(_keep)

    def of_any_rows(
        codes: Tensor, state: list[Tensor], grad: Tensor, decided: Decision, origin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        for tensor in (codes, grad, *state):
            torch._dynamo.maybe_mark_dynamic(tensor, [0, 1])
        found: tuple[Tensor, Tensor, Tensor] = move(codes, state, grad, decided, origin)
        return found

    def kept_of_any_rows(
        state: list[Tensor], moment: Tensor, noise: Tensor, learn: Tensor
    ) -> list[Tensor]:
        for tensor in (moment, noise, *state):
            torch._dynamo.maybe_mark_dynamic(tensor, [0, 1])
        found: list[Tensor] = keep(state, moment, noise, learn)
        return found

    return of_any_rows, kept_of_any_rows


def count_ends(weight: LNSTensor) -> Tensor:
    """How many entries are at the largest level, at the smallest, and zero: int64 [3]."""
    form = weight.form
    found = torch.zeros(3, dtype=torch.int64, device=weight.device)
    for packed in weight.packed.split(_rows_at_once(weight)):
        level = unpack_rows(packed, form.bits, weight.columns) & form.levels
        found += torch.stack([torch.count_nonzero(level == q) for q in (form.levels, 1, 0)])
    return found
