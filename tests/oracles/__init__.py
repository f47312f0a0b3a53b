"""Float64 oracles: one readable trajectory per rule, written from the papers' equations alone.

They take the first weight of one tensor and the gradients it is given, and return every weight
on the way. They import nothing of hf_relopt: what they know comes from the equations and from
the table of what a step does when it should do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
Rate = float | Sequence[float]


@dataclass
class Path:
    """What one tensor went through.

    weights: the weight after each step, in float64. step: steps that had a finite gradient with
    a non-zero entry. skipped: steps whose gradient was not finite. anchor_norm: the norm at the
    first step with a finite gradient, None before it; an array where parts of the tensor have norms
    of their own. moments: the rule's own memory by name.
    """

    weights: list[Array] = field(default_factory=list)
    step: int = 0
    skipped: int = 0
    anchor_norm: float | Array | None = None
    moments: dict[str, Array] = field(default_factory=dict)

    @property
    def last(self) -> Array:
        return self.weights[-1]


def rates(lr: Rate, steps: int) -> list[float]:
    """One learning rate per step, from a constant or from a list as long as the gradients."""
    return [float(lr)] * steps if isinstance(lr, (int, float)) else [float(x) for x in lr]


def norm(array: Array) -> float:
    """Frobenius norm; the largest entry is taken out first so that no square is lost."""
    largest = float(np.max(np.abs(array), initial=0.0))
    if largest == 0.0 or not np.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.sum((array / largest) ** 2)))


def gradient_counts(
    path: Path,
    weight: Array,
    grad: Array | None,
    anchor: Callable[[Array], float | Array] = norm,
) -> bool:
    """Book-keeping every rule shares; True if this gradient is to move the weight.

    A non-finite gradient is only counted. A finite one makes the anchor if it is missing, and
    moves the weight unless it is zero everywhere (an empty tensor's is).
    """
    if grad is None:
        return False
    if not np.all(np.isfinite(grad)):
        path.skipped += 1
        return False
    if path.anchor_norm is None:
        path.anchor_norm = anchor(weight)
    return bool(np.any(grad != 0.0))
