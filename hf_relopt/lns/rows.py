"""Rows of codes: a weight [rows, columns] as bytes and scales, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_relopt.lns.codec import decode, encode
from hf_relopt.lns.format import LNSFormat
from hf_relopt.lns.packing import pack_rows, packed_size, unpack_rows
from hf_relopt.lns.scale import scale_of

# Entries that are encoded at once: the codec holds a few numbers for each.
_PIECE = 2**22


def encoded_rows(weight: Tensor, form: LNSFormat, headroom: float) -> tuple[Tensor, Tensor]:
    """The nearest codes: uint8 [rows, bytes], and scales: float32 [rows], or 0-dim if there is one.

    Args:
        weight: [rows, columns] of a float dtype, finite.
        headroom: see ``scale_of``.
    """
    scale = scale_of(weight, form, headroom)
    rows, columns = weight.shape
    shape = rows, packed_size(columns, form.bits)
    packed = torch.empty(shape, dtype=torch.uint8, device=weight.device)
    step = max(1, _PIECE // max(1, columns))
    for begin in range(0, rows, step):
        pick = slice(begin, begin + step)
        own = scale[pick] if scale.dim() else scale
        packed[pick] = pack_rows(encode(weight[pick], own, form), form.bits)
    return packed, scale.view(-1) if scale.dim() else scale


def decoded_rows(
    packed: Tensor, scale: Tensor, form: LNSFormat, columns: int, dtype: torch.dtype
) -> Tensor:
    """The numbers of packed rows, [rows, columns]."""
    codes = packed if form.bits == 8 else unpack_rows(packed, form.bits, columns)
    return decode(codes, by_rows(scale), form, dtype)


def by_rows(scale: Tensor) -> Tensor:
    """Scales [rows], or the one that there is, to meet [rows, columns]."""
    return scale.unsqueeze(1) if scale.dim() else scale


def filled_up(tensor: Tensor, rows: int) -> Tensor:
    """A tensor with zeros below it, so that it has so many rows."""
    missing = rows - len(tensor)
    if not missing:
        return tensor.contiguous()
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])


def contiguous_stride(size: Sequence[int]) -> tuple[int, ...]:
    """The stride of a contiguous tensor, as torch has it."""
    stride, found = 1, []
    for length in reversed(tuple(size)):
        found.append(stride)
        stride *= max(length, 1)
    return tuple(reversed(found))


def whole_rows(view: Tensor, columns: int) -> slice | None:
    """Which rows a view of [rows, columns] is, one after the other; None if it is no such view."""
    numel, offset, size = view.numel(), view.storage_offset(), view.shape
    if columns == 0 or offset % columns or numel % columns:
        return None
    if numel and view.stride() != contiguous_stride(size):
        return None
    begin, count = offset // columns if numel else 0, math.prod(size) // columns
    return slice(begin, begin + count)
