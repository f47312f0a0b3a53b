"""Madam: every step multiplies each entry of a weight; signs never change.

From "Learning compositional functions via multiplicative weight updates" (Bernstein, Zhao, Meister,
Liu, Anandkumar, Yue; NeurIPS 2020; arXiv 2006.14560).

    v <- beta v + (1 - beta) g^2
    ghat = clip( g / sqrt(v / (1 - beta^t)), +-g_bound )
    W <- W * exp( -eta sign(W) ghat ),   then clip to +-max( p_scale * RMS(W0), |W_old| )

eta: learning rate;  v: second moment (float32);  t: steps with a usable gradient.
Ours: the clip lets an entry that is already outside stay there (the paper cuts it), and a tensor
that started at zero follows W <- W - eta * min_scale * ghat: no multiplication moves a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_relopt.rules.elementwise import exp, times_sign
from hf_relopt.rules.facts import Facts

# Below this g^2 has no full-precision float32: such gradients count as zero (|g| < 1e-19).
SMALLEST_SQUARE = torch.finfo(torch.float32).tiny


def coefficients(
    *,
    lr: Tensor,
    step: Tensor,
    anchor_norm: Tensor,
    numel: Tensor,
    beta: float,
    p_scale: float,
    from_zero: bool = True,
) -> dict[str, Tensor]:
    """What one step multiplies with, for T tensors at once (float64, shape [T]; ``lr`` 0-dim).

    Args:
        step: t, this step included.
        anchor_norm: |W0|; 0 marks a tensor that started at zero.
        numel: entries of each tensor.
        beta: decay of the second moment, in [0, 1).
        p_scale: bound of an entry in units of RMS(W0).
        from_zero: may one of them have started at zero?
    """
    found = {
        "lr": lr,
        "inverse_correction": 1 / (1 - beta**step),
        "max_abs": p_scale * anchor_norm / torch.sqrt(numel),
    }
    return {**found, "additive": anchor_norm == 0} if from_zero else found


def of_tensors(facts: Facts, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The coefficients of full tensors."""
    return coefficients(
        lr=facts.lr,
        step=facts.step,
        anchor_norm=facts.anchor_norm,
        numel=facts.numel,
        beta=options["beta"],
        p_scale=options["p_scale"],
        from_zero=facts.from_zero,
    )


def update(
    param: Tensor,
    grad: Tensor,
    second_moment: Tensor,
    *,
    lr: Tensor,
    inverse_correction: Tensor,
    max_abs: Tensor,
    additive: Tensor | None = None,
    beta: float,
    g_bound: float,
    min_scale: float,
) -> tuple[Tensor, ...]:
    """One step; returns the new weights and the new second moment."""
    second_moment = second_moment * beta + (grad * grad) * (1 - beta)
    length = lr * normalised(grad, second_moment * inverse_correction, g_bound)
    magnitude = param.abs()
    factor = exp(-times_sign(length, param))
    multiplied = torch.minimum(magnitude * factor, torch.maximum(magnitude, max_abs))
    multiplied = times_sign(multiplied, param)
    if additive is not None:
        multiplied = torch.where(additive, param - min_scale * length, multiplied)
    return multiplied, second_moment


def normalised(grad: Tensor, mean_square: Tensor, g_bound: float) -> Tensor:
    """ghat: the gradient over the root of its mean square, within the bound; 0 where that is 0."""
    found = torch.where(mean_square < SMALLEST_SQUARE, 0.0, grad / torch.sqrt(mean_square))
    return found.clamp(-g_bound, g_bound)
