"""One step of one piece: precision, rounding and masks around a rule's equation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_relopt.backends.part import Decision, Equation, Part
from hf_relopt.rules.rounding import noise, stochastic_round


def columns_of(parts: Sequence[Part]) -> list[list[Tensor]]:
    """The weights of all parts, their sources, and each of their buffers."""
    _, weights, sources, buffers = zip(*parts, strict=True)
    return list(map(list, (weights, sources, *zip(*buffers, strict=True))))


def write(
    tensors: tuple[Tensor, ...], equation: Equation, decided: Decision, position: Tensor | None
) -> None:
    """Step one piece in place: weights and buffers, each under its mask.

    Args:
        tensors: weights, gradient or direction, buffers.
        decided: shaped to meet them.
        position: of each entry in the full tensor; None to round to nearest.
    """
    weight, _, *buffers = tensors
    new = results(tensors, equation, decided, position)
    for target, result in zip((weight, *buffers), new, strict=True):
        target.copy_(result)


def results(
    tensors: tuple[Tensor, ...], equation: Equation, decided: Decision, position: Tensor | None
) -> list[Tensor]:
    """What is to be in the place of weights and buffers after the step, each under its mask.

    torch.where decides, not a factor of 0 or 1: 0 * inf is NaN, and -0.0 - 0 * (-1) is +0.0.
    """
    weight, source, *buffers = tensors
    wide = torch.float64 if weight.dtype is torch.float64 else torch.float32
    gradient = source.to(wide)
    if equation.maximize:
        gradient = -gradient
    new, *new_buffers = equation.update(
        weight.to(wide), gradient, *buffers, **decided.coefficients, **equation.constants
    )
    if decided.keys is not None and position is not None:
        rounded = stochastic_round(new, weight.dtype, noise(decided.keys, position))
    else:
        rounded = new.to(weight.dtype)
    found = [torch.where(decided.move, rounded, weight)]
    for new_buffer, buffer in zip(new_buffers, buffers, strict=True):
        found.append(torch.where(decided.learn, new_buffer, buffer))
    return found
