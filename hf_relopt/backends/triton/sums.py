"""Norms and inner products of every slice in two launches: partial sums of tiles, and their totals.

A tile's squares are added in float32, which is fast everywhere, after a division by a power of two
near its largest entry, so that they have room; the sums of tiles in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends import sums as portable
from hf_relopt.backends.part import Part
from hf_relopt.backends.triton.kernel import TILE_WARPS, kernel_of, launch
from hf_relopt.backends.triton.tiles import tiles_of
from hf_relopt.backends.triton.walk import both_ways, head, indented, reading
from hf_relopt.rules.rule import Sums

# Partial sums that a program adds at once, and slices that it has if none has more than one.
_AT_ONCE, _SLICES = 512, 128
_COLUMNS: dict[Sums, int] = {"grad": 1, "norms": 2, "cosine": 3}


def sums(parts: Sequence[Part], what: Sums) -> Tensor:
    """Like sums.sums in backends/, within the rounding of float32."""
    weights, sources = [part.weight for part in parts], [part.source for part in parts]
    columns = [sources] if what == "grad" else [sources, weights]
    tiles = tiles_of([part.view for part in parts], columns, positions=False)
    if tiles is None:
        return portable.sums(parts, what)
    device, count = sources[0].device, _COLUMNS[what]
    rows = torch.empty((tiles.slices, count), dtype=torch.float64, device=device)
    partial = torch.empty((tiles.count * tiles.rows, count), dtype=torch.float64, device=device)
    dtypes = tuple([column[0].dtype for column in columns])
    if tiles.count:
        launch(
            _partial_kernel(what, dtypes, tiles.strided, tiles.wide),
            tiles.count,
            device,
            (tiles.programs, tiles.facts, tiles.addresses(columns), partial),
            {"ROWS": tiles.rows, "COLUMNS": tiles.columns},
            warps=TILE_WARPS,
        )
    single = tiles.most <= 1
    programs = -(-tiles.slices // _SLICES) if single else tiles.slices
    arguments = (partial, tiles.totals, rows, tiles.slices)
    launch(_total_kernel(what, single), programs, device, arguments, {})
    return rows


@cache
def _partial_kernel(what: Sums, dtypes: tuple[torch.dtype, ...], strided: bool, wide: bool) -> Any:
    return kernel_of(partial_text(what, dtypes, strided=strided, wide=wide))


@cache
def _total_kernel(what: Sums, single: bool) -> Any:
    return kernel_of(total_text(what, single=single), ["slices"])


def partial_text(what: Sums, dtypes: Sequence[torch.dtype], *, strided: bool, wide: bool) -> str:
    """The kernel that adds up the squares and products of tiles.

    Args:
        dtypes: of the sources and, unless only their norms are asked for, the weights.
        strided, wide: see Tiles.
    """
    tensors, count = len(dtypes), _COLUMNS[what]

    def body(even: bool) -> list[str]:
        lines = reading(dtypes, strided=strided, wide=wide, even=even)
        for place, dtype in enumerate(dtypes):
            lines += scaled(place, dtype)
        lines += [
            f"to = partial + (tile * ROWS + tl.arange(0, ROWS)[:, None]) * {count}",
            *[f"tl.store(to + {place}, {product(place, place)})" for place in range(tensors)],
        ]
        return lines + ([f"tl.store(to + 2, {product(0, 1)})"] if what == "cosine" else [])

    lines = [*head(tensors), *both_ways(tensors, body(even=False), body(even=True))]
    first = (
        "def partial_sums(programs, facts, addresses, partial, "
        "ROWS: tl.constexpr, COLUMNS: tl.constexpr):"
    )
    return "\n".join([first, *indented(lines), ""])


def scaled(place: int, dtype: torch.dtype) -> list[str]:
    """Lines for a tensor's entries over a power of two, ``u``, and that power, ``scale``."""
    if dtype is torch.float64:
        return [f"u{place} = x{place}", f"scale{place} = tl.full([], 1.0, tl.float64)"]
    wide = f"x{place}" if dtype is torch.float32 else f"x{place}.to(tl.float32)"
    return [
        f"u{place} = {wide}",
        # The exponent of the largest entry, away from where it or its inverse is not normal.
        f"e{place} = tl.max(tl.abs(u{place}), axis=1, keep_dims=True).to(tl.int32, bitcast=True)",
        f"e{place} = tl.minimum(tl.maximum(e{place} >> 23, 1), 253)",
        f"u{place} = u{place} * ((254 - e{place}) << 23).to(tl.float32, bitcast=True)",
        f"scale{place} = (e{place} << 23).to(tl.float32, bitcast=True).to(tl.float64)",
    ]


def product(one: int, other: int) -> str:
    """An expression for the inner products, in float64, of two tensors that are ``scaled``."""
    total = f"tl.sum(u{one} * u{other}, axis=1, keep_dims=True).to(tl.float64)"
    return f"{total} * scale{one} * scale{other}"


def total_text(what: Sums, *, single: bool) -> str:
    """The kernel that adds up partial sums and takes roots.

    Args:
        single: has no slice more than one?
    """
    count = _COLUMNS[what]
    names = ["uu", "ww", "wu"][:count]
    if single:
        lines = [
            f"slice = tl.program_id(0).to(tl.int64) * {_SLICES} + tl.arange(0, {_SLICES})",
            "here = slice < slices",
            "begin = tl.load(totals + 2 * slice, mask=here, other=0)",
            "some = here & (tl.load(totals + 2 * slice + 1, mask=here, other=0) > 0)",
            *[
                f"{name} = tl.load(partial + begin.to(tl.int64) * {count} + {place}, "
                "mask=some, other=0.0)"
                for place, name in enumerate(names)
            ],
        ]
    else:
        lines = [
            "slice = tl.program_id(0).to(tl.int64)",
            "here = slice < slices",
            "begin = tl.load(totals + 2 * slice).to(tl.int64)",
            "most = tl.load(totals + 2 * slice + 1)",
            *[f"{name}s = tl.zeros([{_AT_ONCE}], tl.float64)" for name in names],
            f"for first in range(0, most, {_AT_ONCE}):",
            f"    at = first + tl.arange(0, {_AT_ONCE})",
            *[
                f"    {name}s += tl.load(partial + (begin + at) * {count} + {place}, "
                "mask=at < most, other=0.0)"
                for place, name in enumerate(names)
            ],
            *[f"{name} = tl.sum({name}s, axis=0)" for name in names],
        ]
    lines += [f"to = rows + slice * {count}", "u = tl.sqrt(uu)", "tl.store(to, u, mask=here)"]
    if count > 1:
        lines += ["w = tl.sqrt(ww)", "tl.store(to + 1, w, mask=here)"]
    if what == "cosine":
        # As `cosine` in backends/sums.py: 0 where one of them is 0.
        lines.append("tl.store(to + 2, tl.where(u * w > 0, wu / (u * w), 0.0), mask=here)")
    first = "def total_sums(partial, totals, rows, slices):"
    return "\n".join([first, *indented(lines), ""])
