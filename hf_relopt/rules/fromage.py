"""Fromage: every step changes a weight tensor by the same fraction of its norm.

From "On the distance between two neural networks and the stability of learning" (Bernstein, Vahdat,
Yue, Liu; NeurIPS 2020; arXiv 2002.03432).

    W <- ( W - eta * R * U/|U| ) / sqrt(1 + eta^2),        R = |W|

eta: learning rate, the relative length of the step;  |.|: Frobenius norm of the whole tensor, or of
a block or a row of it;  U: the gradient in the paper, or another direction.
Ours: R = max(|W|, floor) for a tensor that started at zero; p_bound caps |W| at p_bound * |W0|;
on the sphere, |W| stays |W0| in place of the division by the root.

U of successive steps may point the same way where it has a memory. Then |W| grows by a factor of up
to 1 + eta in each step, which the root, made for U at right angles to W, does not undo. So wherever
U is not the gradient of the whole tensor there is a bound, and what has none for want of an anchor,
a tensor that started at zero or a vector, takes steps of a fixed length:

    W <- W - eta * R * U/|U|,     R = floor           started at zero
    W <- W - eta * s * U,         s = max(RMS(W0), min_scale)     a vector, U = m/sqrt(v)
"""

from __future__ import annotations

import torch
from torch import Tensor


def coefficients(
    *,
    lr: Tensor,
    param_norm: Tensor,
    grad_norm: Tensor,
    cosine: Tensor | None,
    anchor_norm: Tensor,
    floor: Tensor,
    p_bound: float | None,
    sphere: bool = False,
    framed: bool = False,
) -> dict[str, Tensor]:
    """What one step multiplies with, for T tensors at once (float64, shape [T]; ``lr`` 0-dim).

    Args:
        param_norm, grad_norm: |W| and |U|.
        cosine: <W, U> / (|W| |U|); needed only with ``p_bound`` or ``sphere``.
        anchor_norm: |W0|; 0 marks a tensor that started at zero.
        floor: min_scale * sqrt(n), the least reference norm of a zero-start tensor.
        p_bound: the largest |W'| / |W0|, or None.
        sphere: |W'| = |W0|; ``p_bound`` is None then.
        framed: is this anything but the paper's rule, with or without p_bound?
    """
    growth = torch.sqrt(1 + lr * lr)
    zero_start = anchor_norm == 0
    from_zero = floor if framed else torch.maximum(param_norm, floor)
    reference = torch.where(zero_start, from_zero, param_norm)
    # 1 - 1/growth without cancellation: written as 1/growth it would be rounded to float32 the same
    # way in every step, and a thousand such roundings add up.
    shrink = lr * lr / (growth * (1 + growth))
    move = lr * reference / growth
    if p_bound is not None or sphere:
        assert cosine is not None
        scale = bound_scale(lr, growth, param_norm, cosine, anchor_norm, p_bound)
        if not framed:
            scale = torch.where(zero_start, 1.0, scale)
        shrink = shrink + (1 - scale) / growth
        move = move * scale
    if framed:
        shrink = torch.where(zero_start, 0.0, shrink)
        move = torch.where(zero_start, lr * reference, move)
    return {"shrink": shrink, "move": move, "grad_norm": grad_norm}


def bound_scale(
    lr: Tensor,
    growth: Tensor,
    param_norm: Tensor,
    cosine: Tensor,
    anchor_norm: Tensor,
    p_bound: float | None,
) -> Tensor:
    """The factor <= 1 that brings |W'| back to ``p_bound * anchor_norm``; None: to |W0| itself.

    |W'|^2 = |W|^2 (1 - 2 eta cos + eta^2) / (1 + eta^2), so the bound needs no look at W'. The
    root of the denominator is ``growth``.
    """
    # cos may exceed 1 by a rounding, and the bracket is (1 - eta)^2 > 0 there: clamp, never NaN.
    square = (1 + lr * (lr - 2 * cosine)).clamp(min=0)
    new_norm = param_norm * torch.sqrt(square) / growth
    largest = anchor_norm if p_bound is None else p_bound * anchor_norm
    scale = torch.where(new_norm > 0, largest / new_norm, 1.0)
    return scale if p_bound is None else scale.clamp(max=1.0)


def vector_coefficients(
    *, lr: Tensor, anchor_norm: Tensor, numel: Tensor, min_scale: float
) -> dict[str, Tensor]:
    """The same for vectors, whose U has entries of about one and is not divided by its norm."""
    length = lr * (anchor_norm / torch.sqrt(numel)).clamp(min=min_scale)
    return {
        "shrink": torch.zeros_like(length),
        "move": length,
        "grad_norm": torch.ones_like(length),
    }


def update(
    param: Tensor, grad: Tensor, *, shrink: Tensor, move: Tensor, grad_norm: Tensor
) -> tuple[Tensor, ...]:
    """One step. U is normalised before it meets |W|: their product may be no float."""
    return (param - (param * shrink + (grad / grad_norm) * move),)
