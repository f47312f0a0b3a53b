"""What kernels over tiles have in common: which entries a program has, and how it reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_relopt.backends.triton.program import NAMES
from hf_relopt.backends.triton.tiles import FACTS, STRIDES

# Begins each kernel: its tile, and whether the fast way to read it is open.
_HEAD = """\
tile = tl.program_id(0).to(tl.int64)
part = tl.load(programs + tile).to(tl.int64)
facts += part * {facts}
addresses += part * {addresses}
count = tl.load(facts)
length = tl.load(facts + 1)
place = (tile - tl.load(facts + 6)).to(tl.int32)
pieces = tl.load(facts + 7).to(tl.int32)
row = (place // pieces) * ROWS + tl.arange(0, ROWS)[:, None]
here = row < count
slice = tl.load(facts + 4) + row
piece = place % pieces"""


def head(tensors: int) -> list[str]:
    """Lines after which the part, ``row``, ``here``, ``slice`` and ``piece`` of a tile are known.

    Args:
        tensors: how many belong to each part.
    """
    return _HEAD.format(facts=FACTS + STRIDES * (tensors + 1), addresses=tensors + 1).splitlines()


def both_ways(tensors: int, body: Sequence[str], even_body: Sequence[str]) -> list[str]:
    """Lines that go the fast way where all addresses and lengths are multiples of 16."""
    return [
        f"if tl.load(addresses + {tensors}) != 0:",
        *indented(even_body),
        "else:",
        *indented(body),
    ]


def indented(lines: Sequence[str]) -> list[str]:
    """The lines, one step to the right."""
    return [f"    {line}" for line in lines]


def reading(dtypes: Sequence[torch.dtype], *, strided: bool, wide: bool, even: bool) -> list[str]:
    """Lines that read the tile of each tensor ``x0, x1, ...`` from its address ``p0, p1, ...``.

    Args:
        dtypes: of the tensors of each part.
        strided, wide: see Tiles.
        even: are addresses and lengths multiples of 16?
    """
    size = "tl.multiple_of(length, 16)" if even else "length"
    column = "piece.to(tl.int64)" if wide else "piece"
    lines = [
        f"size = {size}",
        f"column = {column} * COLUMNS + tl.arange(0, COLUMNS)[None, :]",
        "inside = here & (column < size)",
        *(_along(wide=wide, even=even) if strided else []),
    ]
    for place, dtype in enumerate(dtypes):
        at = FACTS + STRIDES * (place + 1)
        pointer = f"tl.load(addresses + {place}).to(tl.pointer_type({NAMES[dtype]}))"
        lines += [
            f"p{place} = {f'tl.multiple_of({pointer}, 16)' if even else pointer}",
            f"p{place} += {_offset(at, strided=strided, wide=wide, even=even)}",
            f"x{place} = tl.load(p{place}, mask=inside, other=0.0)",
        ]
    return lines


def position(*, strided: bool) -> str:
    """An expression for the position of each entry in its full tensor, wrapped to 32 bits."""
    offset = _offset(FACTS, strided=strided, wide=True, even=False)
    return f"(tl.load(facts + 5) + {offset}).to(tl.int32)"


def _along(*, wide: bool, even: bool) -> list[str]:
    """Lines for the place of each column along the three dimensions of its slice."""
    # A division of 64 bits takes a GPU a hundred instructions.
    n1, n2 = (f"tl.load(facts + {place}){'' if wide else '.to(tl.int32)'}" for place in (2, 3))
    return [
        f"n2 = {f'tl.multiple_of({n2}, 16)' if even else n2}",
        f"n1 = {n1}",
        "i2 = column % n2",
        "outer = column // n2",
        "i1 = outer % n1",
        "i0 = outer // n1",
    ]


def _offset(at: int, *, strided: bool, wide: bool, even: bool) -> str:
    """An expression for the offset of each entry, whose strides begin at a fact's place ``at``."""

    def stride(place: int) -> str:
        # Offsets of 64 bits for each entry would take a kernel's registers.
        narrow = ".to(tl.int32)" if place and not wide else ""
        loaded = f"tl.load(facts + {at + place}){narrow}"
        return f"tl.multiple_of({loaded}, 16)" if even else loaded

    along_slices = f"row.to(tl.int64) * {stride(0)}"
    if not strided:
        return f"({along_slices} + column)"
    inner = "i2" if even else f"i2 * {stride(3)}"
    return f"({along_slices} + (i0 * {stride(1)} + i1 * {stride(2)} + {inner}))"
