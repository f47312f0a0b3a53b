"""Fromage in float64 (arXiv 2002.03432): W <- (W - lr ||W|| g/||g||) / sqrt(1 + lr^2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.oracles import Array, Path, Rate, gradient_counts, norm, rates


def paper(weight: Array, grads: Sequence[Array], lr: Rate, *, p_bound: float | None = None) -> Path:
    """The published rule and nothing else: every gradient moves, no floor, no mask.

    The bound is the papers' regulariser: a weight whose norm exceeds p_bound times the first
    weight's norm is scaled back to that norm.
    """
    path = Path(anchor_norm=norm(weight))
    w = np.array(weight, dtype=np.float64)
    for grad, eta in zip(grads, rates(lr, len(grads)), strict=True):
        g = np.asarray(grad, dtype=np.float64)
        w = (w - eta * norm(w) * (g / norm(g))) / np.sqrt(1.0 + eta**2)
        if p_bound is not None:
            w = _pulled_back(w, p_bound * path.anchor_norm)
        path.step += 1
        path.weights.append(w.copy())
    return path


def fromage(
    weight: Array,
    grads: Sequence[Array | None],
    lr: Rate,
    *,
    p_bound: float | None = None,
    min_scale: float,
    maximize: bool = False,
) -> Path:
    """The rule with our decisions: masks, counters, and the floor of zero-start tensors.

    A tensor whose anchor is zero uses max(||W||, min_scale * sqrt(n)) where the rule says ||W||,
    and has no bound.
    """
    path = Path()
    w = np.array(weight, dtype=np.float64)
    for grad, eta in zip(grads, rates(lr, len(grads)), strict=True):
        if gradient_counts(path, w, grad):
            path.step += 1
            if eta != 0.0:
                g = np.asarray(grad, dtype=np.float64) * (-1.0 if maximize else 1.0)
                w = _step(w, g, eta, path.anchor_norm, p_bound, min_scale)
        path.weights.append(w.copy())
    return path


def _step(
    w: Array, g: Array, eta: float, anchor: float, p_bound: float | None, min_scale: float
) -> Array:
    scale = norm(w)
    if anchor == 0.0:
        scale = max(scale, min_scale * np.sqrt(w.size))
    new = (w - eta * scale * (g / norm(g))) / np.sqrt(1.0 + eta**2)
    if p_bound is not None and anchor != 0.0:
        new = _pulled_back(new, p_bound * anchor)
    return new


def _pulled_back(w: Array, largest_norm: float) -> Array:
    # The norm of the new weight is taken from the new weight itself, not from the closed form.
    size = norm(w)
    return w * (largest_norm / size) if size > largest_norm else w
