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

Where a slice of n entries follows its gradient over a running root mean square, U is of length
sqrt(n) on average and not in each step: a token that is rare, or whose gradient is noise, moves by
less than a whole step. It is relative to the first norm, so that the steps of a run are alike:

    W <- W - eta * R * U/sqrt(n),     R = |W0|, or floor if it started at zero

Where a part of a tensor is stepped by its own norm, its first one may say nothing: the row of a
new token is the mean of the others, a tenth as long; an expert may start at zero beside others. A
part P, of n of the tensor's N entries, has a share T of its norm, and is a placeholder if it has
much less:

    T = |W0| * sqrt(n/N),     |P0| < T/2 (a row), < T/10 (a block)

It is stepped as others are whose norms are T, and sooner, since it has learnt nothing yet:

    R = max(|P|, T),     eta' = max(eta, min(10 eta, 0.01)),     |P'| <= p_bound * T; sphere: <= T

Its anchor is -T: the sign says which parts these are. A tensor that is all zero has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_relopt.rules.facts import Facts

# Rows are many and alike. Of MiniLM's 30,522 those below half are the tokens that were never
# trained, all at one place; rows that are drawn at random are all above it.
PLACEHOLDER_ROW = 0.5
# Blocks are few and may differ: a trained model's values are half as long as its queries, or less.
PLACEHOLDER_BLOCK = 0.1
# How many times the rate untrained weights follow in a model that is fine-tuned, and to what rate.
AHEAD, UNTRAINED_LR = 10.0, 0.01


def coefficients(
    *,
    lr: Tensor,
    param_norm: Tensor,
    grad_norm: Tensor,
    cosine: Tensor | None,
    anchor_norm: Tensor,
    floor: Tensor,
    p_bound: float | Tensor | None,
    sphere: bool = False,
    framed: bool = False,
) -> dict[str, Tensor]:
    """What one step multiplies with, for T tensors at once (float64, shape [T]; ``lr`` 0-dim).

    Args:
        param_norm, grad_norm: |W| and |U|.
        cosine: <W, U> / (|W| |U|); needed only with ``p_bound`` or ``sphere``.
        anchor_norm: |W0|; 0 marks a tensor that started at zero, -T a placeholder.
        floor: min_scale * sqrt(n), the least reference norm of a zero-start tensor.
        p_bound: the largest |W'| / |W0|, one or [T], or None.
        sphere: |W'| = |W0|; ``p_bound`` is None then.
        framed: is this anything but the paper's rule, with or without p_bound?
    """
    zero_start = anchor_norm == 0
    if framed:
        lr = torch.where(anchor_norm < 0, untrained_lr(lr), lr)
        # -anchor_norm is T of a placeholder, and below any norm for others.
        reference = torch.where(zero_start, floor, torch.maximum(param_norm, -anchor_norm))
    else:
        reference = torch.where(zero_start, torch.maximum(param_norm, floor), param_norm)
    growth = torch.sqrt(1 + lr * lr)
    # 1 - 1/growth without cancellation: written as 1/growth it would be rounded to float32 the same
    # way in every step, and a thousand such roundings add up.
    shrink = lr * lr / (growth * (1 + growth))
    move = lr * reference / growth
    if p_bound is not None or sphere:
        assert cosine is not None
        scale = bound_scale(lr, growth, param_norm, reference, cosine, anchor_norm, p_bound)
        if not framed:
            scale = torch.where(zero_start, 1.0, scale)
        shrink = shrink + (1 - scale) / growth
        move = move * scale
    if framed:
        shrink = torch.where(zero_start, 0.0, shrink)
        move = torch.where(zero_start, lr * reference, move)
    return {"shrink": shrink, "move": move, "grad_norm": grad_norm}


def of_tensors(facts: Facts, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The coefficients of full tensors along their gradients, the paper's rule."""
    return of_slices(facts, options, framed=options["bound"] == "sphere")


def of_slices(facts: Facts, options: Mapping[str, Any], framed: bool = True) -> dict[str, Tensor]:
    """The coefficients of tensors, rows or blocks along any direction."""
    assert facts.param_norm is not None
    return coefficients(
        lr=facts.lr,
        param_norm=facts.param_norm,
        grad_norm=facts.grad_norm,
        cosine=facts.cosine,
        anchor_norm=facts.anchor_norm,
        floor=options["min_scale"] * facts.numel.sqrt(),
        p_bound=facts.p_bound,
        sphere=options["bound"] == "sphere",
        framed=framed,
    )


def of_running(facts: Facts, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The coefficients of slices that follow g over its running root mean square."""
    assert facts.param_norm is not None and facts.grad_rms is not None
    return running_coefficients(
        lr=facts.lr,
        param_norm=facts.param_norm,
        grad_norm=facts.grad_norm,
        typical_norm=facts.grad_rms * facts.numel.sqrt(),
        cosine=facts.cosine,
        anchor_norm=facts.anchor_norm,
        floor=options["min_scale"] * facts.numel.sqrt(),
        p_bound=facts.p_bound,
        sphere=options["bound"] == "sphere",
    )


def of_vectors(facts: Facts, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The coefficients of vectors beside matrices with a direction of their own."""
    return vector_coefficients(
        lr=facts.lr,
        anchor_norm=facts.anchor_norm,
        numel=facts.numel,
        min_scale=options["min_scale"],
    )


def running_coefficients(
    *,
    lr: Tensor,
    param_norm: Tensor,
    grad_norm: Tensor,
    typical_norm: Tensor,
    cosine: Tensor | None,
    anchor_norm: Tensor,
    floor: Tensor,
    p_bound: float | Tensor | None,
    sphere: bool,
) -> dict[str, Tensor]:
    """The same where U is divided by the length that it has on average.

    Args:
        grad_norm, typical_norm: |g|, and its running root mean square times sqrt(n).
    """
    zero_start = anchor_norm == 0
    lr = torch.where(anchor_norm < 0, untrained_lr(lr), lr)
    reference = torch.where(zero_start, floor, anchor_norm.abs())
    shrink, move = torch.zeros_like(reference), lr * reference
    if p_bound is not None or sphere:
        assert cosine is not None
        length = lr * torch.where(typical_norm > 0, grad_norm / typical_norm, 0.0)
        one = torch.ones_like(reference)
        scale = bound_scale(length, one, param_norm, reference, cosine, anchor_norm, p_bound)
        scale = torch.where(zero_start, 1.0, scale)
        shrink, move = 1 - scale, move * scale
    return {"shrink": shrink, "move": move, "grad_norm": typical_norm}


def bound_scale(
    lr: Tensor,
    growth: Tensor,
    param_norm: Tensor,
    reference: Tensor,
    cosine: Tensor,
    anchor_norm: Tensor,
    p_bound: float | Tensor | None,
) -> Tensor:
    """The factor <= 1 that brings |W'| back to ``p_bound * |W0|``; None: to |W0| itself.

    |W'|^2 = R^2 (q^2 - 2 eta q cos + eta^2) / (1 + eta^2) with q = |W|/R, so the bound needs no
    look at W'. The root of the denominator is ``growth``; q is 1 but for a placeholder, which has T
    for |W0| and is not stretched to it.
    """
    q = torch.where(reference > 0, param_norm / reference, 1.0)
    # cos may exceed 1 by a rounding, and the bracket is (q - eta)^2 there: clamp, never NaN.
    square = (q * q + lr * (lr - 2 * q * cosine)).clamp(min=0)
    new_norm = reference * torch.sqrt(square) / growth
    size = anchor_norm.abs()
    largest = size if p_bound is None else p_bound * size
    scale = torch.where(new_norm > 0, largest / new_norm, 1.0)
    held = scale.clamp(max=1.0)
    return held if p_bound is not None else torch.where(anchor_norm < 0, held, scale)


def part_anchor(part_norm: Tensor, share: Tensor, least: float) -> Tensor:
    """The anchor of a part of a tensor: |P0|, or -T for a placeholder.

    Args:
        part_norm: |P0|.
        share: T, the norm that the part would have if the tensor's were evenly spread.
        least: PLACEHOLDER_ROW or PLACEHOLDER_BLOCK.
    """
    return torch.where(part_norm < least * share, -share, part_norm)


def untrained_lr(lr: Tensor) -> Tensor:
    """What untrained weights follow in a model whose rate is ``lr``: ten times that, up to 0.01."""
    return torch.maximum(lr, (AHEAD * lr).clamp(max=UNTRAINED_LR))


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
