"""One step of one piece: how weights are read and written, and masks, around a rule's equation.

``load`` and ``store`` are the storage of a weight: dense, and rounded stochastically where its
dtype is short. Weights that are stored in another way need another pair of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_relopt.backends.part import Decision, Equation, Part
from hf_relopt.rules.rounding import noise, stochastic_round


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision the rule runs in: float64 for float64 weights, float32 for all others."""
    return torch.float64 if dtype is torch.float64 else torch.float32


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
    held = load(weight)
    gradient = source.to(held.dtype)
    if equation.maximize:
        gradient = -gradient
    new, *new_buffers = equation.update(
        held, gradient, *buffers, **decided.coefficients, **equation.constants
    )
    found = [torch.where(decided.move, store(new, weight.dtype, decided.keys, position), weight)]
    for new_buffer, buffer in zip(new_buffers, buffers, strict=True):
        found.append(torch.where(decided.learn, new_buffer.to(buffer.dtype), buffer))
    return found


def load(weight: Tensor) -> Tensor:
    """What is stored, in the precision of the rule: float64 stays, all else becomes float32."""
    return weight if weight.dtype is torch.float64 else weight.to(torch.float32)


def store(new: Tensor, dtype: torch.dtype, keys: Tensor | None, position: Tensor | None) -> Tensor:
    """What is to be stored of ``new``.

    Args:
        keys, position: of the rounding noise, see rules/rounding.py; None to round to nearest.
    """
    if keys is None or position is None:
        return new.to(dtype)
    return stochastic_round(new, dtype, noise(keys, position))
