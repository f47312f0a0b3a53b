"""Fromage: every step changes a weight tensor by the same fraction of its norm.

From "On the distance between two neural networks and the stability of learning" (Bernstein, Vahdat,
Yue, Liu; NeurIPS 2020; arXiv 2002.03432).

    W <- ( W - eta * R * g/|g| ) / sqrt(1 + eta^2),        R = |W|

eta: learning rate, the relative length of the step;  |.|: Frobenius norm of the whole tensor.
Ours: R = max(|W|, floor) for a tensor that started at zero; p_bound caps |W| at p_bound * |W0|.
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
) -> dict[str, Tensor]:
    """What one step multiplies with, for T tensors at once (float64, shape [T]; ``lr`` 0-dim).

    Args:
        param_norm, grad_norm: |W| and |g|.
        cosine: <W, g> / (|W| |g|); needed only with ``p_bound``.
        anchor_norm: |W0|; 0 marks a tensor that started at zero.
        floor: min_scale * sqrt(n), the least reference norm of a zero-start tensor.
        p_bound: the largest |W'| / |W0|, or None.
    """
    growth = torch.sqrt(1 + lr * lr)
    zero_start = anchor_norm == 0
    reference = torch.where(zero_start, torch.maximum(param_norm, floor), param_norm)
    # 1 - 1/growth without cancellation: written as 1/growth it would be rounded to float32 the same
    # way in every step, and a thousand such roundings add up.
    shrink = lr * lr / (growth * (1 + growth))
    move = lr * reference / growth
    if p_bound is not None:
        assert cosine is not None
        bound = bound_scale(lr, param_norm, cosine, anchor_norm, p_bound)
        bound = torch.where(zero_start, 1.0, bound)
        shrink = shrink + (1 - bound) / growth
        move = move * bound
    return {"shrink": shrink, "move": move, "grad_norm": grad_norm}


def bound_scale(
    lr: Tensor, param_norm: Tensor, cosine: Tensor, anchor_norm: Tensor, p_bound: float
) -> Tensor:
    """The factor <= 1 that brings |W'| back to ``p_bound * anchor_norm``.

    |W'|^2 = |W|^2 (1 - 2 eta cos + eta^2) / (1 + eta^2), so the bound needs no look at W'.
    """
    # cos may exceed 1 by a rounding, and the bracket is (1 - eta)^2 > 0 there: clamp, never NaN.
    ratio = (1 - 2 * lr * cosine + lr * lr).clamp(min=0) / (1 + lr * lr)
    new_norm = param_norm * torch.sqrt(ratio)
    return torch.where(new_norm > 0, p_bound * anchor_norm / new_norm, 1.0).clamp(max=1.0)


def update(
    param: Tensor, grad: Tensor, *, shrink: Tensor, move: Tensor, grad_norm: Tensor
) -> tuple[Tensor, ...]:
    """One step. g is normalised before it meets |W|: their product may be no float."""
    return (param - (param * shrink + (grad / grad_norm) * move),)
