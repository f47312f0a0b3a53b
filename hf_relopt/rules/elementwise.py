"""Functions of one entry in the form that is cheap where they run: eager kernels or a compiled one.

Eager code pays for each operation, so torch's own are best. In a compiled CPU kernel exp is a
call that keeps nothing in registers and a comparison costs several instructions, while arithmetic
and work on sign bits are nearly free.
"""

from __future__ import annotations

import torch
from torch import Tensor

# e^x = 2^n e^r with |r| <= ln(2)/2; coefficients of e^r from r^6 down, minimax, error 4e-9.
_EXP = (0.0013814610, 0.0083687110, 0.041668389, 0.16666521, 0.49999994, 1.0, 1.0)
_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453
# Adding it rounds a float32 to an integer and leaves that integer in the low bits.
_ROUND = 12582912.0

# The bits of 1 less those of sqrt(1/2), up to the sign.
_HALF_POWER = 0x3F800000 - 0x3F3504F3

_BITS = {torch.float32: (torch.int32, -(2**31)), torch.float64: (torch.int64, -(2**63))}


def exp(x: Tensor) -> Tensor:
    """e^x for |x| <= 80; relative error below 1.2e-7 up to 0.3, 7e-7 up to 10."""
    if not torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32:
        return torch.exp(x)
    shifted = x * _LOG2_E + _ROUND
    r = x - (shifted - _ROUND) * _LN_2
    value = torch.full_like(r, _EXP[0])
    for coefficient in _EXP[1:]:
        value = value * r + coefficient
    # A multiplication by 2^23 moves n into the exponent: shifts are checked, products are not.
    bits = value.view(torch.int32) + shifted.view(torch.int32) * 2**23
    return bits.view(torch.float32)


def log(x: Tensor) -> Tensor:
    """The natural logarithm of numbers >= 0; absolute error below 1e-5, far below 0 for 0."""
    if not torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32:
        return torch.log(x)
    bits = x.view(torch.int32)
    # x = 2^n m with m from sqrt(1/2) to sqrt(2): half a power of two more is taken off.
    n = ((bits + _HALF_POWER) >> 23) - 127
    m = (bits - n * 2**23).view(torch.float32)
    s = (m - 1) / (m + 1)
    square = s * s
    series = s * (2 + square * (2 / 3 + square * (2 / 5 + square * (2 / 7))))
    return n.to(torch.float32) * _LN_2 + series


def times_sign(x: Tensor, of: Tensor) -> Tensor:
    """``x`` with its sign changed where the sign bit of ``of`` is set."""
    integer, sign_bit = _BITS[x.dtype]
    return (x.view(integer) ^ (of.view(integer) & sign_bit)).view(x.dtype)
