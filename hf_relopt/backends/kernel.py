"""One step of one piece: precision, rounding and masks around a rule's equation."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_relopt.backends.part import Decision, Equation
from hf_relopt.rules.rounding import ROUNDED_DTYPES, noise, stochastic_round


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision the rule runs in: float64 for float64 weights, float32 for all others."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def needs_noise(weight: Tensor, keys: Tensor | None) -> bool:
    """True if writing into ``weight`` rounds stochastically."""
    return keys is not None and weight.dtype in ROUNDED_DTYPES


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
    for target, new in zip((weight, *buffers), results(tensors, equation, decided, position)):
        target.copy_(new)


def results(
    tensors: tuple[Tensor, ...], equation: Equation, decided: Decision, position: Tensor | None
) -> list[Tensor]:
    """What is to be in the place of weights and buffers after the step, each under its mask.

    torch.where decides, not a factor of 0 or 1: 0 * inf is NaN, and -0.0 - 0 * (-1) is +0.0.
    """
    weight, source, *buffers = tensors
    wide = compute_dtype(weight.dtype)
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
    kept = [
        torch.where(decided.learn, new_buffer, buffer)
        for new_buffer, buffer in zip(new_buffers, buffers, strict=True)
    ]
    return [torch.where(decided.move, rounded, weight), *kept]
