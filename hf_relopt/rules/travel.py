"""How far a weight can have got from where it began: an upper bound from learning rates alone.

    W' = P( (W - eta R U/|U|) / sqrt(1 + eta^2) ),  R = |W|         rules/fromage.py
    P: the nearest point of norm at most b |W0|                     b = p_bound, inf without one

    n: bound of |W|/|W0|, 1 at first;      d: bound of |W - W0|/|W0|, 0 at first
    d <- min( d + delta n + max(0, n - b),  1 + n' )    delta = 1 - (1 - eta)/sqrt(1 + eta^2)
    n' = min( n (1 + eta)/sqrt(1 + eta^2),  b )

Whatever U is, |W - eta R U/|U| - W sqrt(1 + eta^2)| <= eta |W| + (sqrt(1 + eta^2) - 1) |W|, which
is delta; U = W attains it. delta is eta + eta^2/2 and not eta: a step along W is shortened by the
root, too. Nearest points of a ball are no further apart than what they are nearest to, so P adds
nothing for a weight inside of it, and |W| - b |W0| for one that is outside, as at first if b < 1.

    sphere      W' = |W0| V/|V|,  V = W - eta R U/|U|:  the angle of W and V is at most arcsin(eta),
                d <- min( d + 2 sin(arcsin(eta)/2),  2 )

A weight that is stepped in parts (rows or blocks) has these bounds in each part, and so as a whole:
|dW|^2 is the sum of |dP|^2. Placeholders among the parts are measured by T for |P0|:

    |W - W0|^2 <= d^2 |W0|^2 + d'^2 sum T^2,     d' like d, with eta' for eta

Each step also rounds every entry, by eps/2 of it at most.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Reach(NamedTuple):
    """Bounds of a weight's distance and norm, both in units of |W0|."""

    distance: float
    norm: float


START = Reach(0.0, 1.0)


def after_step(
    reach: Reach, lr: float, *, p_bound: float | None, sphere: bool, eps: float
) -> Reach:
    """The bounds after one more step.

    Args:
        reach: those before it.
        lr: eta, of this weight: with its group's factor; 0 <= lr < 1.
        p_bound: b, or None.
        sphere: is |W| kept?
        eps: of the weight's dtype; 0 leaves rounding out.
    """
    distance, norm = reach
    if lr == 0:
        return reach  # not one bit changes
    if sphere:
        distance += 2 * math.sin(math.asin(lr) / 2) + eps
        return Reach(min(distance, 2.0 + eps), 1.0)
    growth = math.sqrt(1 + lr * lr)
    bound = math.inf if p_bound is None else p_bound
    step = (1 - (1 - lr) / growth) * norm + max(0.0, norm - bound)
    grown = min(norm * (1 + lr) / growth, bound) + eps * norm
    return Reach(min(distance + step + eps * norm, 1 + grown), grown)


def with_placeholders(distance: float, untrained: float, share: float) -> float:
    """The bound of |W - W0|/|W0| for a weight stepped in parts.

    Args:
        distance: d.
        untrained: d', of its placeholders.
        share: sum T^2 over the placeholders, in units of |W0|^2; 0 without any.
    """
    return math.sqrt(distance * distance + untrained * untrained * share)
