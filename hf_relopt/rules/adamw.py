"""AdamW, so that a plan can hand some tensors to it inside the same optimizer.

From "Decoupled weight decay regularization" (Loshchilov, Hutter; ICLR 2019; arXiv 1711.05101).

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    W <- W - eta * ( wd W + (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) )
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_relopt.rules.facts import Facts


def coefficients(*, lr: Tensor, step: Tensor, betas: tuple[float, float]) -> dict[str, Tensor]:
    """The bias corrections of T tensors (float64, shape [T]) and ``lr`` (0-dim)."""
    return {"lr": lr, "correction1": 1 - betas[0] ** step, "correction2": 1 - betas[1] ** step}


def of_tensors(facts: Facts, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The coefficients of full tensors."""
    return coefficients(lr=facts.lr, step=facts.step, betas=options["betas"])


def update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: Tensor,
    correction1: Tensor,
    correction2: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, ...]:
    """One step; returns the new weights and both new moments."""
    exp_avg = exp_avg * betas[0] + grad * (1 - betas[0])
    exp_avg_sq = exp_avg_sq * betas[1] + (grad * grad) * (1 - betas[1])
    direction = (exp_avg / correction1) / (torch.sqrt(exp_avg_sq / correction2) + eps)
    return param - lr * (param * weight_decay + direction), exp_avg, exp_avg_sq
