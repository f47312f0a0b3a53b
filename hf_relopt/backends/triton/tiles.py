"""Tiles: how one launch walks over many tensors, by a table of their addresses.

A program of a kernel has a tile: some slices of a part, or a piece of one. What never changes, as
the tiles, shapes and strides, is put on the device once. Addresses are looked at in each step, and
sent again only if one has changed, as a gradient's may that is made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hf_relopt.backends.part import View

# Entries of a tile: eight for each thread of sixteen warps.
TILE = 4096
# What is known of each part: [count, length, n1, n2, first, origin, tile, pieces], then four
# strides for the positions and for each tensor: from slice to slice, and along the three dimensions
# of a slice. ``tile`` is the part's first one, ``pieces`` into how many each slice is cut.
FACTS, STRIDES = 8, 4
_DIMS = 3
# Addresses and strides in bytes and entries that are multiples of it let a thread load four
# numbers at once.
_EVEN = 16
# Entries of a slice from which on a column needs 64 bits.
_WIDE = 2**31 - TILE
# Tables of addresses that are kept, and tiles of the same parts: gradients may alternate between a
# few places, and weights, gradients and moments are read in several orders.
_KEPT = 8
# What has its entries where its address is. Of others, such as quantized weights, nobody knows.
_PLAIN = {Tensor, nn.Parameter}

Strides = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of some parts.

    Attributes:
        programs: int32 [P], the part of each tile.
        rows, columns: of a tile: slices, and entries of each, powers of two.
        facts: int64 [parts, ...], see FACTS.
        totals: int32 [S, 2]: where the partial sums of each slice begin, and how many they are.
        most: the largest number of these.
        strided: are entries to be found by strides, or do they follow each other?
        wide: does a column, or an entry's offset in its slice, need 64 bits?
        even: of each part, whether its lengths and strides are multiples of 16.
    """

    programs: Tensor
    rows: int
    columns: int
    facts: Tensor
    totals: Tensor
    most: int
    strided: bool
    wide: bool
    even: tuple[bool, ...]
    _sent: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return self.programs.size(0)

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return self.totals.size(0)

    def addresses(self, columns: Sequence[Sequence[Tensor]]) -> Tensor:
        """int64 [parts, tensors + 1]: where each part's tensors lie, and whether all are even.

        Args:
            columns: the first tensor of each part, the second of each, and so on.
        """
        pointers = [list(map(Tensor.data_ptr, column)) for column in columns]
        key = tuple([pointer for own in pointers for pointer in own])
        found = self._sent.get(key)
        if found is None:
            rows = [
                [*own, int(even and not any([pointer % _EVEN for pointer in own]))]
                for even, own in zip(self.even, zip(*pointers, strict=True), strict=True)
            ]
            device = self.programs.device
            # Pinned, so that the host does not wait; torch keeps the page until it is read.
            pinned = device.type == "cuda"
            sent = torch.tensor(rows, dtype=torch.int64, device="cpu", pin_memory=pinned)
            found = sent.to(device, non_blocking=True)
            _keep(self._sent, key, found)
        return found


def tiles_of(
    views: Sequence[View], columns: Sequence[Sequence[Tensor]], *, positions: bool
) -> Tiles | None:
    """The tiles of parts with tensors in these columns, or None.

    There are none if a part has too many strides, a column tensors of several dtypes, or a tensor
    entries that are not where its address is, as they are written down.

    They live as long as the first view does: with the bundle of the weights.

    Args:
        positions: is the position of each entry in the full tensor asked for?
    """
    for column in columns:
        dtype = column[0].dtype
        if any([each.dtype is not dtype or type(each) not in _PLAIN for each in column]):
            return None
        if any(map(Tensor.is_neg, column)):
            return None
    strides = tuple([tuple(map(Tensor.stride, column)) for column in columns])
    first, *others = views
    known = _known.setdefault(first, {})
    key = (*others, strides, columns[0][0].device, positions, TILE)
    if key not in known:
        _keep(known, key, _tiles(views, strides, columns[0][0].device, positions))
    return known[key]


_known: WeakKeyDictionary[View, dict[Any, Tiles | None]] = WeakKeyDictionary()


def _keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep a value, and of those before the last few."""
    while len(kept) >= _KEPT:
        del kept[next(iter(kept))]
    kept[key] = value


def _tiles(
    views: Sequence[View],
    strides: tuple[tuple[Strides, ...], ...],
    device: torch.device,
    positions: bool,
) -> Tiles | None:
    walks: list[_Walk] = []
    for place, view in enumerate(views):
        walk = _walk(view, [own[place] for own in strides], positions)
        if walk is None:
            return None
        walks.append(walk)
    longest = max(1, *[walk.length for walk in walks])
    rows, columns = _sizes(longest, max([walk.count for walk in walks]))
    programs, totals, begins = _cut(walks, rows, columns)

    def on_device(table: Tensor, dtype: torch.dtype) -> Tensor:
        return table.to(dtype).to(device, non_blocking=True)

    return Tiles(
        programs=on_device(programs, torch.int32),
        rows=rows,
        columns=columns,
        facts=on_device(_facts(walks, begins, columns), torch.int64),
        totals=on_device(totals, torch.int32),
        most=max([-(-walk.length // columns) for walk in walks]),
        strided=any([walk.strided for walk in walks]),
        wide=max([longest, *[walk.reach for walk in walks]]) > _WIDE,
        even=tuple([walk.even for walk in walks]),
    )


def _sizes(longest: int, most: int) -> tuple[int, int]:
    """Slices and entries of a tile, powers of two, for slices up to a length and a count."""
    columns = min(TILE, 1 << (longest - 1).bit_length())
    return min(TILE // columns, 1 << (most - 1).bit_length()), columns


def _cut(walks: Sequence[_Walk], rows: int, columns: int) -> tuple[Tensor, Tensor, list[int]]:
    """``programs`` and ``totals`` of Tiles, and the first tile of each part."""
    counts: list[int] = []
    totals: list[Tensor] = []
    begins: list[int] = []
    begin = 0
    for walk in walks:
        groups, pieces = -(-walk.count // rows), -(-walk.length // columns)
        counts.append(groups * pieces)
        # With several rows a tile has whole slices, and each row a partial sum of its own.
        first = begin * rows + torch.arange(walk.count) * (pieces if rows == 1 else 1)
        totals.append(torch.stack([first, torch.full_like(first, pieces)], dim=1))
        begins.append(begin)
        begin += counts[-1]
    programs = torch.arange(len(walks)).repeat_interleave(torch.tensor(counts))
    return programs, torch.cat(totals), begins


def _facts(walks: Sequence[_Walk], begins: Sequence[int], columns: int) -> Tensor:
    """A row of the table for each part."""
    rows = []
    for walk, begin in zip(walks, begins, strict=True):
        pieces = max(1, -(-walk.length // columns))
        _, n1, n2 = walk.sizes
        own = [walk.count, walk.length, n1, n2, walk.first, walk.origin, begin, pieces]
        rows.append(own + [stride for each in walk.strides for stride in each])
    return torch.tensor(rows)


@dataclass(frozen=True)
class _Walk:
    """How a part's entries are found: slices, and in each up to three dimensions.

    Attributes:
        first, count: its slices.
        length: entries of a slice.
        sizes: of the three dimensions.
        strides: of the positions and of each tensor: along slices, then along the dimensions.
        origin: the position of the first entry.
        strided: must an entry be found by strides?
    """

    first: int
    count: int
    length: int
    sizes: tuple[int, int, int]
    strides: tuple[Strides, ...]
    origin: int
    strided: bool

    @property
    def reach(self) -> int:
        """The largest offset in a slice of any tensor."""
        if not self.length:
            return 0
        return max(
            sum([(size - 1) * s for size, s in zip(self.sizes, own[1:], strict=True)])
            for own in self.strides[1:]
        )

    @property
    def even(self) -> bool:
        """True if runs of entries begin and end at multiples of 16 in every tensor."""
        tensors = self.strides[1:]
        if self.length % _EVEN or self.sizes[-1] % _EVEN:
            return False
        return all([own[-1] == 1 and not any([s % _EVEN for s in own[:-1]]) for own in tensors])


def _walk(view: View, strides: Sequence[Strides], positions: bool) -> _Walk | None:
    """Merge the dimensions that all tensors walk through alike; None if more than three are left.

    Args:
        strides: of each tensor, the weight's first.
    """
    shape, all_strides = view.shape, [view.strides, *strides]
    along = [0] * len(all_strides)
    if view.count > 1:
        along = [own[0] for own in all_strides]
        shape, all_strides = shape[1:], [own[1:] for own in all_strides]
    length = view.numel // view.count if view.count else 0
    # In the order in which the weight lies in memory, whatever its dimensions are.
    dims = [dim for dim in range(len(shape)) if shape[dim] > 1]
    dims.sort(key=lambda dim: -strides[0][dim + (view.count > 1)])
    # The positions are the first of them, and count only if they are asked for.
    read = slice(0 if positions else 1, None)
    merged: list[tuple[int, list[int]]] = []
    for dim in dims:
        size, own = shape[dim], [each[dim] for each in all_strides]
        if merged and [size * stride for stride in own][read] == merged[-1][1][read]:
            merged[-1] = (merged[-1][0] * size, own)
        else:
            merged.append((size, own))
    if len(merged) > _DIMS:
        return None
    flat = len(merged) <= 1 and all([stride == 1 for _, own in merged for stride in own[read]])
    padded = [(1, [0] * len(all_strides))] * (_DIMS - len(merged)) + merged
    sizes = tuple([size for size, _ in padded])
    found = [
        (along[place], *[own[place] for _, own in padded]) for place in range(len(all_strides))
    ]
    return _Walk(
        view.first, view.count, length, sizes, tuple(found), view.origin, not flat  # type: ignore[arg-type]
    )  # fmt: skip
