"""Madam in float64 (arXiv 2006.14560): W <- W exp(-lr sign(W) g_hat), entry by entry.

v     <- beta v + (1 - beta) g^2                      v_0 = 0
g_hat =  clip(g / sqrt(v / (1 - beta^t)), +-g_bound)  0 where v = 0
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.oracles import Array, Path, Rate, gradient_counts, norm, rates


def paper(
    weight: Array,
    grads: Sequence[Array],
    lr: Rate,
    *,
    beta: float = 0.999,
    p_scale: float = 3.0,
    g_bound: float = 10.0,
) -> Path:
    """The published rule and nothing else: the clip is +-p_scale * RMS(W_0) for every entry."""
    path = Path(anchor_norm=norm(weight))
    w = np.array(weight, dtype=np.float64)
    v = np.zeros_like(w)
    bound = p_scale * norm(w) / np.sqrt(w.size)
    for grad, eta in zip(grads, rates(lr, len(grads)), strict=True):
        g = np.asarray(grad, dtype=np.float64)
        path.step += 1
        v = beta * v + (1.0 - beta) * g**2
        g_hat = _normalised(g, v, beta, path.step, g_bound)
        w = np.clip(w * np.exp(-eta * np.sign(w) * g_hat), -bound, bound)
        path.weights.append(w.copy())
    path.moments["second_moment"] = v
    return path


def madam(
    weight: Array,
    grads: Sequence[Array | None],
    lr: Rate,
    *,
    beta: float = 0.999,
    p_scale: float = 3.0,
    g_bound: float = 10.0,
    min_scale: float,
    maximize: bool = False,
) -> Path:
    """The rule with our decisions: masks, counters, outliers kept, zero-start tensors additive.

    An entry may stay where it was even beyond the bound, and go nowhere farther out. A tensor
    whose anchor is zero follows W <- W - lr * min_scale * g_hat without a bound.
    """
    path = Path()
    w = np.array(weight, dtype=np.float64)
    v = np.zeros_like(w)
    for grad, eta in zip(grads, rates(lr, len(grads)), strict=True):
        if gradient_counts(path, w, grad):
            g = np.asarray(grad, dtype=np.float64) * (-1.0 if maximize else 1.0)
            path.step += 1
            v = beta * v + (1.0 - beta) * g**2
            g_hat = _normalised(g, v, beta, path.step, g_bound)
            if eta == 0.0:
                pass  # memory moves, the weight does not
            elif path.anchor_norm == 0.0:
                w = w - eta * min_scale * g_hat
            else:
                bound = np.maximum(p_scale * path.anchor_norm / np.sqrt(w.size), np.abs(w))
                w = np.clip(w * np.exp(-eta * np.sign(w) * g_hat), -bound, bound)
        path.weights.append(w.copy())
    path.moments["second_moment"] = v
    return path


def _normalised(g: Array, v: Array, beta: float, t: int, g_bound: float) -> Array:
    size = np.sqrt(v / (1.0 - beta**t))
    quotient = np.divide(g, size, out=np.zeros_like(g), where=size > 0.0)
    return np.clip(quotient, -g_bound, g_bound)
