"""AdamW in float64 (arXiv 1711.05101, decoupled weight decay), under our do-nothing table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.oracles import Array, Path, Rate, gradient_counts, rates


def adamw(
    weight: Array,
    grads: Sequence[Array | None],
    lr: Rate,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> Path:
    """W <- (1 - lr weight_decay) W - lr m_hat / (sqrt(v_hat) + eps), with the shared masks."""
    path = Path()
    w = np.array(weight, dtype=np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for grad, eta in zip(grads, rates(lr, len(grads)), strict=True):
        if gradient_counts(path, w, grad):
            g = np.asarray(grad, dtype=np.float64) * (-1.0 if maximize else 1.0)
            path.step += 1
            m = betas[0] * m + (1.0 - betas[0]) * g
            v = betas[1] * v + (1.0 - betas[1]) * g**2
            m_hat = m / (1.0 - betas[0] ** path.step)
            v_hat = v / (1.0 - betas[1] ** path.step)
            if eta != 0.0:
                w = (1.0 - eta * weight_decay) * w - eta * m_hat / (np.sqrt(v_hat) + eps)
        path.weights.append(w.copy())
    path.moments.update(exp_avg=m, exp_avg_sq=v)
    return path
