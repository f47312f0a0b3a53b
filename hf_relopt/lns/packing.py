"""Packing: codes of 8, 10, 12 or 16 bits end to end in bytes.

The lowest bit of the first code is the lowest of the first byte, and so on: four codes of 10 bits
are five bytes, two of 12 are three. A last group is filled up with zeros, so that any number of
codes can be packed, and where a group begins both a code and a byte begin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
    if bits == 8:
        return flat.to(torch.uint8, copy=True)
    length, size = group_of(bits)
    groups = -(-flat.numel() // length)
    if flat.numel() < groups * length:
        flat = torch.nn.functional.pad(flat, (0, groups * length - flat.numel()))
    columns = flat.view(groups, length).to(torch.int32).unbind(1)
    packed = torch.empty(groups, size, dtype=torch.uint8, device=codes.device)
    for place in range(size):
        byte = None
        for number, column in enumerate(columns):
            shift = bits * number - 8 * place
            if -bits < shift < 8:
                part = column << shift if shift >= 0 else column >> -shift
                byte = part if byte is None else byte | part
        assert byte is not None
        packed[:, place] = byte & 0xFF
    return packed.view(-1)


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
    dtype = code_dtype(bits)
    if bits == 8:
        return packed.reshape(-1).to(dtype)
    length, size = group_of(bits)
    columns = packed.reshape(-1, size).to(dtype).unbind(1)
    codes = torch.empty(packed.numel() // size, length, dtype=dtype, device=packed.device)
    mask = 2**bits - 1
    for number in range(length):
        code = None
        for place, column in enumerate(columns):
            shift = 8 * place - bits * number
            if -8 < shift < bits:
                part = column << shift if shift >= 0 else column >> -shift
                code = part if code is None else code | part
        assert code is not None
        codes[:, number] = code & mask
    return codes.view(-1)[:count]


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Each row of codes [rows, columns] on its own, as uint8 [rows, packed_size(columns, bits)].

    A last group is filled up with zeros, so that rows can be cut apart, sent and joined as bytes.
    """
    rows, columns = codes.shape
    length, _ = group_of(bits)
    filled = -columns % length
    if filled:
        codes = torch.nn.functional.pad(codes, (0, filled))
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
