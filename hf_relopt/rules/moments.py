"""Moments: what a direction keeps of the gradients, and how they become one.

    gradient   U = g
    momentum   m <- mu m + (1 - mu) g                     U = m, or (1 - mu) g + mu m (Nesterov)
    spectral   the same momentum                          U = the above, orthogonalized
    adam       m as above,  v <- beta v + (1 - beta) g^2  U = (m/(1 - mu^t)) / sqrt(v/(1 - beta^t))
    rms        s^2 <- beta s^2 + (1 - beta) |g|^2/n       U = g / (s/sqrt(1 - beta^t))
    sinkhorn   nothing                                    see rules/sinkhorn.py
    factored   a number for each row and each column      see rules/factored.py

g: gradient;  m: momentum buffer;  v: second moment;  mu, beta: their decays;  t: steps with a
usable gradient;  s: one number for a tensor, a row or a block of n entries, t being its own count
of steps with a gradient of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_relopt.rules.madam import SMALLEST_SQUARE


def take_in(momentum: Tensor, grad: Tensor, *, decay: float) -> tuple[Tensor, ...]:
    """The new momentum."""
    return (momentum * decay + grad * (1 - decay),)


def follow(
    momentum: Tensor, grad: Tensor, direction: Tensor, *, decay: float
) -> tuple[Tensor, ...]:
    """The new momentum, and what is followed: the same."""
    (new,) = take_in(momentum, grad, decay=decay)
    return new, new


def look_ahead(
    momentum: Tensor, grad: Tensor, direction: Tensor, *, decay: float
) -> tuple[Tensor, ...]:
    """The new momentum, and Nesterov's: as it would be after its gradient once more."""
    (new,) = take_in(momentum, grad, decay=decay)
    return new, *take_in(new, grad, decay=decay)


def take_in_square(
    momentum: Tensor, grad: Tensor, second_moment: Tensor, *, decay: float, beta: float
) -> tuple[Tensor, ...]:
    """The new momentum and the new second moment."""
    new = second_moment * beta + (grad * grad) * (1 - beta)
    return momentum * decay + grad * (1 - decay), new


def running_rms(
    kept: Tensor, count: Tensor, grad_norm: Tensor, numel: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """The new s of S slices, and that freed of the bias that it starts with.

    The root is kept and not the square, which has no room in float32 for gradients of 1e-30.

    Args:
        kept: s, [S], 0 before the first gradient.
        count: t, [S], with this gradient.
        grad_norm, numel: |g| and n, [S].
    """
    new = torch.sqrt(beta * kept.square() + (1 - beta) * grad_norm.square() / numel)
    return new, new / torch.sqrt(1 - beta**count)


def adam(
    momentum: Tensor, second_moment: Tensor, *, correction1: Tensor, correction2: Tensor
) -> Tensor:
    """m/c1 / sqrt(v/c2), elementwise; 0 where v is too small to be a float."""
    mean_square = second_moment / correction2
    unit = (momentum / correction1) / torch.sqrt(mean_square)
    return torch.where(mean_square < SMALLEST_SQUARE, 0.0, unit)
