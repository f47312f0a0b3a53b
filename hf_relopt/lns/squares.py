"""Squares in 8 bits: a second moment in a logarithmic number system without a sign.

    v = exp(delta * (top - (255 - q))),     q in {1 ... 255},     and 0 at q = 0

top: a whole number of each row, that of its largest entry; delta: the distance of neighbouring
levels in natural log space. Since tops are whole numbers of levels, a row whose largest entry has
changed keeps its other levels as they are. What is below the range is at the smallest level: a
step that is divided by its root is smaller for it, never larger.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_relopt.rules.elementwise import exp, log

# Levels reach over exp(254 * delta) = 8e9, roots of squares over 9e4. They are rounded
# stochastically, which makes a noise of its own, and that grows only with the root of the spacing.
SPACING = 0.09
LEVELS = 255
# Tops for which every level is a normal number of float32, and the largest number is one.
_LEAST = math.ceil(math.log(torch.finfo(torch.float32).tiny) / SPACING) + LEVELS
_MOST = math.floor(math.log(torch.finfo(torch.float32).max) / SPACING)


def decode_squares(codes: Tensor, top: Tensor) -> Tensor:
    """The numbers of codes, float32.

    Args:
        codes: uint8 [rows, columns].
        top: float32 [rows, 1].
    """
    size = exp((codes.to(torch.float32) + (top - LEVELS)) * SPACING)
    return torch.where(codes == 0, 0.0, size)


def encode_squares(squares: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [rows, columns] and tops float32 [rows, 1], so that the mean of many is right.

    Args:
        squares: float32 [rows, columns], finite and not below 0.
        bits: int32 in [0, 65536) of the same shape, see rules/rounding.py.
    """
    # Levels above that of 1, of which zero has none.
    place = log(squares) * (1 / SPACING)
    if not squares.shape[1]:
        return squares.to(torch.uint8), squares.new_zeros(len(squares), 1)
    top = torch.ceil(place.amax(dim=1, keepdim=True) - _SAME).clamp(_LEAST, _MOST)
    place = (place - top + LEVELS).clamp(1, LEVELS)
    below = torch.floor(place + _SAME)
    above = torch.where(place - below > _SAME, place - below, 0.0)
    # (exp(delta f) - 1) / (exp(delta) - 1) to a noise's resolution, at a tenth of its time.
    share = above * (_SHARE[0] + above * (_SHARE[1] + above * _SHARE[2]))
    code = (below + (share > bits).to(torch.float32)).clamp(max=LEVELS)
    return torch.where(squares == 0, 0.0, code).to(torch.uint8), top


# By powers of f, times the range of a noise.
_SHARE = [65536 * SPACING**n / math.factorial(n) / math.expm1(SPACING) for n in (1, 2, 3)]
# A logarithm in float32 of a number at a level is off it by less than this part of a spacing.
_SAME = 2e-4
