"""Packing: codes of 8, 10, 12 or 16 bits end to end in bytes.

The lowest bit of the first code is the lowest of the first byte, and so on: four codes of 10 bits
are five bytes, two of 12 are three. A last group is filled up with zeros, so that any number of
codes can be packed, and where a group begins both a code and a byte begin. Bytes of a word are in
the order of all machines that PyTorch is built for, the lowest first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_relopt.errors import FormatError

# What the name of a weight's scales ends with in files, beside the weight itself.
SCALES = "_lns_scales"


def group_of(bits: int) -> tuple[int, int]:
    """The codes and the bytes of the smallest group that is full."""
    codes = 8 // math.gcd(8, bits)
    return codes, codes * bits // 8


def code_dtype(bits: int) -> torch.dtype:
    """What unpacked codes are held in."""
    return torch.int16 if bits < 16 else torch.int32


def packed_size(count: int, bits: int) -> int:
    """The bytes of so many codes."""
    codes, size = group_of(bits)
    return -(-count // codes) * size


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of any shape, row by row, as uint8 [packed_size].

    Args:
        codes: integers in [0, 2^bits).
    """
    flat = codes.reshape(-1)
    count = flat.numel()
    if bits == 8:
        return flat.to(torch.uint8, copy=True)
    # Four codes are a word of 64 bits, 16 for each, in which the last three move down. In a copy: a
    # view may begin in the middle of a word.
    words = _filled(flat.to(torch.int16, copy=True), 4).view(torch.int64)
    joined = words & _mask(bits)
    for place in range(1, 4):
        moved = words >> place * (16 - bits)
        joined |= moved.bitwise_and_(_mask(bits, place * bits))
    cut = joined.view(torch.uint8).view(-1, 8)[:, : bits // 2]
    return cut.reshape(-1)[: packed_size(count, bits)]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` codes, [count]: int16, or int32 for 16 bits.

    Args:
        packed: uint8, as ``pack`` makes it.

    Raises:
        FormatError: there are more or fewer bytes than these codes have.
    """
    if packed.numel() != packed_size(count, bits) or packed.dtype is not torch.uint8:
        raise FormatError(
            f"{count:,} codes of {bits} bits are {packed_size(count, bits):,} bytes (uint8), but "
            f"there are {packed.numel():,} in {packed.dtype}. The file may be cut off, or of "
            "another format."
        )
    flat = packed.reshape(-1)
    if bits == 8:
        return flat.to(torch.int16)
    size = bits // 2
    joined = pad(_filled(flat, size).view(-1, size), (0, 8 - size)).view(torch.int64).view(-1)
    words = joined & _mask(bits)
    for place in range(1, 4):
        moved = joined << place * (16 - bits)
        words |= moved.bitwise_and_(_mask(bits, place * 16))
    codes = words.view(torch.int16)[:count]
    return codes if bits < 16 else codes.to(torch.int32) & _mask(bits)


def _filled(flat: Tensor, length: int) -> Tensor:
    """With zeros at its end, so that it has a multiple of so many entries."""
    missing = -flat.numel() % length
    return pad(flat, (0, missing)) if missing else flat


def _mask(bits: int, place: int = 0) -> int:
    """So many bits from a place on, as a number that int64 holds: the highest bit is the sign."""
    mask = ((1 << bits) - 1) << place
    return mask - (1 << 64) if mask >= 1 << 63 else mask


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Each row of codes [rows, columns] on its own, as uint8 [rows, packed_size(columns, bits)].

    A last group is filled up with zeros, so that rows can be cut apart, sent and joined as bytes.
    """
    rows, columns = codes.shape
    length, _ = group_of(bits)
    filled = -columns % length
    if filled:
        codes = pad(codes, (0, filled))
    return pack(codes, bits).view(rows, packed_size(columns, bits))


def unpack_rows(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The codes [rows, columns] of ``pack_rows``: int16, or int32 for 16 bits.

    Raises:
        FormatError: the rows have more or fewer bytes than these codes.
    """
    length, _ = group_of(bits)
    rows, filled = len(packed), columns + -columns % length
    size = packed_size(columns, bits)
    if packed.shape != (rows, size):
        raise FormatError(
            f"Rows of {columns:,} codes of {bits} bits are {size:,} bytes, but there are "
            f"bytes of shape {tuple(packed.shape)}. The file may be cut off, or of another format."
        )
    return unpack(packed.reshape(-1), bits, rows * filled).view(rows, filled)[:, :columns]
