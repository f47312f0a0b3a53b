"""Deep relative trust: how far apart two networks are, from how far apart their layers are.

From "On the distance between two neural networks and the stability of learning" (Bernstein, Vahdat,
Yue, Liu; NeurIPS 2020; arXiv 2002.03432).

    r_l = |dW_l| / |W_l|          DRT = prod_l (1 + r_l) - 1 = expm1( sum_l log1p r_l )
    descent holds while  eta < (1 + cos theta)^(1/L) - 1

W_l: the weight matrix of layer l of L;  dW_l: its change;  theta: angle between step and -gradient.
The sum of logarithms is the quantity to add and compare: the product overflows in deep networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

# What pair_sums adds up, in this order.
SUMS = ("before", "after", "update", "sign_changes", "changed", "entries")


def log_deep_relative_trust(relative_updates: Iterable[float]) -> float:
    """Sum log1p r: the logarithm of 1 + DRT; 0 for identical networks.

    Args:
        relative_updates: r of each weight matrix, >= 0.
    """
    return math.fsum(map(math.log1p, relative_updates))


def deep_relative_trust(log_drt: float) -> float:
    """DRT from the logarithm of 1 + DRT; inf beyond what a float64 holds (1.8e308)."""
    try:
        return math.expm1(log_drt)
    except OverflowError:
        return math.inf


def largest_lr(depth: int, cosine: float = 1.0) -> float:
    """The relative step below which the paper's lemma promises descent.

    Args:
        depth: L, the number of weight matrices, >= 1.
        cosine: of the angle between the step and the negative gradient, in (-1, 1].
    """
    return math.expm1(math.log1p(cosine) / depth)


def pair_sums(before: Tensor, after: Tensor) -> Tensor:
    """What the distance between two tensors of one shape is made of, in the order of SUMS.

    Returns:
        float64 [6]: |W|^2, |W'|^2, |W' - W|^2, entries whose sign has changed, entries that have
        changed, entries. Adds up over pieces of a tensor, and over shards.
    """
    # Differences of float32 numbers near each other are exact, and squares are summed in float64,
    # which has room for those of 1e38.
    wide = torch.float64 if torch.float64 in (before.dtype, after.dtype) else torch.float32
    before, after = before.to(wide).flatten(), after.to(wide).flatten()
    update = after - before
    norms = [
        torch.linalg.vector_norm(each, dtype=torch.float64) for each in (before, after, update)
    ]
    # Not the sign of a product, which vanishes for tiny entries.
    signs = torch.count_nonzero(torch.sign(before).mul_(torch.sign(after)) < 0)
    counts = [
        signs.double(),
        torch.count_nonzero(update).double(),
        norms[0].new_tensor(len(update)),
    ]
    return torch.stack([*[norm * norm for norm in norms], *counts])
