"""Stochastic rounding to bfloat16 and float16 with noise that is a function, not a stream.

A change below half a unit in the last place is lost when rounding to nearest: in bfloat16 a typical
weight then ignores every relative step below 2^-9. Rounding up with the probability of what is left
over keeps the mean. The noise depends on (seed, parameter, step, position in the whole tensor) and
on nothing else, so replicas round alike, and a resumed run rounds as if it had never stopped.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDED_DTYPES = (torch.bfloat16, torch.float16)

# Lowest float32 mantissa bits that the short format drops.
_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
_FLOAT16_SMALLEST_NORMAL = 2.0**-14
_FLOAT16_SUBNORMALS_PER_ONE = 2.0**24


def _low32(value: Tensor) -> Tensor:
    return value & 0xFFFFFFFF


def rounds_stochastically(dtype: torch.dtype, rounding: str | None) -> bool:
    """True if weights of ``dtype`` are written with noise under this ``rounding`` option."""
    return dtype in ROUNDED_DTYPES and rounding != "nearest"


def noise_keys(seed: int, index: Tensor, step: Tensor) -> Tensor:
    """One 32-bit key per tensor from its index in the optimizer and its step count.

    Args:
        seed: the group's seed, any integer.
        index: int64 [T], the parameter's position among all of the optimizer's parameters.
        step: [T], its step count t.
    Returns: int32 [T].
    """
    key = _mix64(index * 0x9E3779B1 + _mix_seed(seed))
    key = _mix64(key ^ (step.to(torch.int64) * 0x85EBCA77))
    return key.to(torch.int32)


def _mix_seed(seed: int) -> int:
    # Python's integers do not wrap: keep what fits, so that neighbouring seeds stay different.
    return (seed * 0x9E3779B97F4A7C15 + 0x3C6EF372) % 2**62


def _mix64(value: Tensor) -> Tensor:
    """A 32-bit finaliser (murmur3's constants) held in int64, where products do not overflow."""
    value = _low32(value ^ (value >> 32))
    value = _low32((value ^ (value >> 16)) * 0x45D9F3B)
    value = _low32((value ^ (value >> 15)) * 0x2C1B3C6D)
    return value ^ (value >> 16)


def noise(key: Tensor, position: Tensor) -> Tensor:
    """16 random bits per entry: int32 in [0, 65536).

    Args:
        key: int32, 0-dim or one per entry.
        position: int32, the entry's place in the whole tensor (row-major).
    """
    value = _hash(key, position)
    return (value ^ (value >> 16)) & 0xFFFF


def two_noises(key: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """``noise``, and 16 random bits more that have nothing to do with it."""
    value = _hash(key, position)
    upper = (value >> 16) & 0xFFFF
    return (value ^ upper) & 0xFFFF, upper


def _hash(key: Tensor, position: Tensor) -> Tensor:
    # int32 products wrap around, which is what a hash wants; masks make the shifts logical ones.
    value = position * -0x61C88647 + key
    value = (value ^ ((value >> 16) & 0xFFFF)) * -0x7A143595
    return (value ^ ((value >> 13) & 0x7FFFF)) * -0x3D4D51CB


def stochastic_round(value: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """``value`` (float32) in ``dtype``, rounded up in magnitude with the remainder's probability.

    Args:
        dtype: torch.bfloat16 or torch.float16.
        bits: int32 in [0, 65536), see :func:`noise`.
    """
    dropped = _DROPPED_BITS[dtype]
    as_int = value.view(torch.int32)
    # Judged by the bits: a compiler may cancel a cast to the short format and back.
    exact = (as_int & ((1 << dropped) - 1)) == 0
    kept = (as_int + (bits >> (16 - dropped))) & -(1 << dropped)
    rounded = kept.view(torch.float32)
    if dtype is torch.float16:
        # float16 subnormals are evenly spaced: dropping a fixed number of bits is wrong there.
        scaled = value * _FLOAT16_SUBNORMALS_PER_ONE
        subnormal = torch.floor(scaled + bits.to(torch.float32) / 65536)
        small = value.abs() < _FLOAT16_SMALLEST_NORMAL
        rounded = torch.where(small, subnormal / _FLOAT16_SUBNORMALS_PER_ONE, rounded)
        exact = torch.where(small, scaled == torch.floor(scaled), exact)
    # Above the largest number there is only Inf, and a finite weight must stay finite.
    largest = torch.finfo(dtype).max
    rounded = rounded.clamp(-largest, largest)
    # What needs no rounding gets none (-0.0 too), and NaN keeps its bits.
    return torch.where(exact | ~torch.isfinite(value), value, rounded).to(dtype)
