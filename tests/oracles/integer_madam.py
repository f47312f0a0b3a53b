"""Integer Madam in float64: how far each weight should move in levels, before rounding.

q in {1 ... L} counts upwards from the smallest level; 0 is the weight zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.oracles import Array


def rises(
    negative: Array,
    grads: Sequence[Array],
    lr: float,
    spacing: float,
    *,
    beta: float = 0.999,
    g_bound: float = 10.0,
) -> list[Array]:
    """What each step adds to q: -lr sign(W) g_hat / spacing, a real number."""
    v = np.zeros_like(np.asarray(grads[0], dtype=np.float64))
    found = []
    for step, grad in enumerate(grads, start=1):
        g = np.asarray(grad, dtype=np.float64)
        v = beta * v + (1.0 - beta) * g**2
        size = np.sqrt(v / (1.0 - beta**step))
        g_hat = np.clip(
            np.divide(g, size, out=np.zeros_like(g), where=size > 0.0), -g_bound, g_bound
        )
        found.append(-lr * np.where(negative, -1.0, 1.0) * g_hat / spacing)
    return found
