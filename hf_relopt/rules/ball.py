"""A ball around where a weight began, and the point of it that is nearest to where the weight is.

    |W - W0| <= rho |W0|              W <- W0 + s (W - W0),   s = min(1, rho |W0| / |W - W0|)

W0: the initial weight, the centre;  rho: radius in units of its norm;  s: what is kept of the way.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kept_share(update_norm: Tensor, initial_norm: Tensor, rho: float) -> Tensor:
    """The shares s of T weights; 1 for what is inside, for a zero W0, and for norms not finite.

    Args:
        update_norm: |W - W0| of the full weights, [T].
        initial_norm: |W0|, [T].
        rho: radius, > 0.
    """
    radius = rho * initial_norm
    outside = (update_norm > radius) & (radius > 0) & (update_norm < torch.inf)
    # The division may be 0/0 where it is not taken.
    return torch.where(outside, radius / update_norm, 1.0)


def nearest(param: Tensor, initial: Tensor, share: Tensor) -> Tensor:
    """The nearest point of the ball, in the weight's dtype; bit for bit ``param`` if s is 1.

    Args:
        param, initial: W and W0, of one shape.
        share: s, 0-dim.
    """
    wide = torch.promote_types(param.dtype, torch.float32)
    weight, centre = param.to(wide), initial.to(wide)
    return torch.where(share < 1, (weight - centre) * share + centre, weight).to(param.dtype)
