"""Integer Madam: Madam where weights are whole numbers of levels in a logarithmic number system.

From "Learning compositional functions via multiplicative weight updates" (Bernstein, Zhao, Meister,
Liu, Anandkumar, Yue; NeurIPS 2020; arXiv 2006.14560).

    W = sign * s * exp(-delta (L - q)),     q in {1 ... L}
    v <- beta v + (1 - beta) g^2
    ghat = clip( g / sqrt(v / (1 - beta^t)), +-g_bound )
    q <- clip( q - round(eta ghat / delta) * sign, 1, L )

eta: learning rate;  delta: spacing of levels in natural log space;  s: scale of the row.
Ours: the increments are rounded stochastically, so that a learning rate below half a spacing trains
and schedules work (the paper rounds to the nearest, and chooses eta to be a multiple of delta); q
counts from the smallest level upwards, where the paper's k counts from the largest downwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_relopt.rules.facts import Facts
from hf_relopt.rules.madam import normalised


def of_tensors(facts: Facts, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """What one step of full tensors multiplies with (float64, [T]; ``lr`` 0-dim or [T])."""
    return {"lr": facts.lr, "inverse_correction": 1 / (1 - options["beta"] ** facts.step)}


def update(
    level: Tensor,
    grad: Tensor,
    second_moment: Tensor,
    *,
    is_negative: Tensor,
    bits: Tensor,
    lr: Tensor,
    inverse_correction: Tensor,
    spacing: float,
    levels: int,
    beta: float,
    g_bound: float,
) -> tuple[Tensor, Tensor]:
    """One step; returns the new levels and the new second moment.

    Args:
        level: q, an integer tensor; 0 is the weight zero, which stays.
        is_negative: bool, where weights are below zero.
        bits: int32 in [0, 65536), the noise of the rounding.
        levels: L.
    """
    second_moment = second_moment * beta + (grad * grad) * (1 - beta)
    fall = (lr / spacing) * normalised(grad, second_moment * inverse_correction, g_bound)
    rise = torch.where(is_negative, fall, -fall)
    whole = torch.floor(rise)
    up = (rise - whole) * 65536 > bits
    moved = (level + whole.to(level.dtype) + up.to(level.dtype)).clamp(1, levels)
    return torch.where(level == 0, level, moved), second_moment
