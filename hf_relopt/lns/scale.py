"""Scales: the largest weight that a row, or a tensor, has room for."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_relopt.errors import ConfigError
from hf_relopt.lns.format import SMALLEST_SCALE, LNSFormat

# Madam holds entries below this times the root mean square that they had at first.
HEADROOM = 3.0


def scale_of(weight: Tensor, form: LNSFormat, headroom: float = HEADROOM) -> Tensor:
    """The scale of a weight: its largest entry, or ``headroom`` times their root mean square.

    That is what Madam lets entries grow to, so that there is room for a whole run. Of nothing but
    zeros it is the smallest there is.

    Args:
        weight: of any shape and float dtype.
        headroom: room for weights to grow in, over their root mean square: Madam's ``p_scale``.

    Returns:
        float32, [rows, 1, ...] to meet the weight, or 0-dim where the tensor has one scale.

    Raises:
        ConfigError: an entry is not finite, or the headroom is none.
    """
    check_headroom(headroom)
    shape = scale_shape(weight.shape, form)
    if weight.numel() == 0:
        return torch.full(shape, SMALLEST_SCALE, dtype=torch.float32, device=weight.device)
    by_row = len(shape) > 0
    dims = list(range(int(by_row), weight.dim()))
    wide = weight.detach().to(torch.float32)
    largest = wide.abs().amax(dim=dims, keepdim=by_row)
    require_finite(largest, weight.shape)
    # Squares of 1e30 have no room: over the largest they are at most one.
    unit = wide / largest.clamp(min=SMALLEST_SCALE)
    rms = unit.square().mean(dim=dims, keepdim=by_row).sqrt()
    found = largest * (headroom * rms).clamp(min=1.0)
    return found.clamp(SMALLEST_SCALE, torch.finfo(torch.float32).max)


def check_headroom(headroom: float) -> None:
    """Raise ConfigError for what is no factor of a root mean square."""
    if not isinstance(headroom, int | float) or not 0 <= headroom < float("inf"):
        raise ConfigError(
            f"headroom is {headroom!r}; it is a factor of the root mean square, such as "
            f"{HEADROOM:g}, and 0 leaves room for the weights as they are."
        )


def require_finite(numbers: Tensor, shape: torch.Size) -> None:
    """Raise ConfigError if a number of a weight of this shape is NaN or infinite. Waits for it."""
    if not bool(torch.isfinite(numbers).all()):
        raise ConfigError(
            f"A weight of shape {tuple(shape)} has entries that are NaN or infinite, or beyond "
            "float32, which no logarithmic format stores. Find the step in which they came, and "
            "go on from a checkpoint before it."
        )


def scale_shape(shape: torch.Size, form: LNSFormat) -> tuple[int, ...]:
    """The shape of the scales of a weight of this shape."""
    if form.scale == "tensor" or len(shape) < 2:
        return ()
    return (shape[0], *[1] * (len(shape) - 1))
