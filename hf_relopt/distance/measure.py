"""What two states of one weight differ by, from pieces of them: sums, and spectral norms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hf_relopt.distance.adapters import AdaptedWeights, LowRank
from hf_relopt.distance.spectral import spectral_norm
from hf_relopt.distance.weights import Weights, pieces_of
from hf_relopt.errors import UnsupportedSetup
from hf_relopt.rules.distance import SUMS, pair_sums
from hf_relopt.sharding.layout import Layout

# Entries read at once, and of them those that a CPU works on at once.
PIECE, CACHED = 2**20, 2**17
# Up to so many entries, a matrix whose spectral norm is wanted is read once and kept.
KEPT = 2**26


@dataclass(frozen=True)
class Pair:
    """One weight in two states.

    Attributes:
        before, after: where it is read.
        name, other: its names there.
    """

    before: Weights
    after: Weights
    name: str
    other: str

    @property
    def label(self) -> str:
        """The name of a running network goes before that of a file."""
        held = self.after.in_order and not self.before.in_order
        return self.other if held else self.name

    @property
    def shape(self) -> torch.Size:
        """Of the full weight."""
        return self.before.shapes[self.name]

    @property
    def low_rank(self) -> LowRank | None:
        """The factors of its change, if it is the base's own weight and an adapter changes it."""
        adapted = isinstance(self.after, AdaptedWeights) and self.after.base is self.before
        return self.after.changes.get(self.other) if adapted else None  # type: ignore[attr-defined]

    def layout(self) -> Layout | None:
        """How the weight lies over the ranks; None if this process has all of it.

        Raises:
            UnsupportedSetup: both sides are sharded, each in its own way.
        """
        ours, theirs = self.before.layout(self.name), self.after.layout(self.other)
        if (
            ours
            and theirs
            and (ours.offset, ours.local_shape) != (theirs.offset, theirs.local_shape)
        ):
            raise UnsupportedSetup(
                f"{self.name} lies on other ranks in {self.before.label} than in "
                f"{self.after.label}. Shard both alike, or compare checkpoints."
            )
        return ours or theirs

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The pieces of both states that lie on this rank."""
        layout = self.layout()
        shape = self.shape if layout is None else layout.local_shape
        begins = (0,) * len(shape) if layout is None else layout.offset
        for where in pieces_of(tuple(shape), begins, PIECE):
            before = self.before.read(self.name, where)
            after = self.after.read(self.other, where)
            if before.device.type == "mps":  # which has no float64
                before = before.cpu()
            yield before, after.to(before.device)


@torch.no_grad()
def sums_of(pair: Pair) -> Tensor:
    """rules.distance.pair_sums of this rank's part of a pair, float64 [6]."""
    total: Tensor | None = None
    for before, after in pair.pieces():
        found = sums_between(before, after)
        total = found if total is None else total + found
    if total is None:
        total = torch.zeros(len(SUMS), dtype=torch.float64)
    if (change := pair.low_rank) is not None:
        # Exact, where the sum of W and BA is rounded.
        total[SUMS.index("update")] = change.square().to(total.device)
    return total


def sums_between(before: Tensor, after: Tensor) -> Tensor:
    """rules.distance.pair_sums of two tensors on one device, float64 [6]."""
    pairs = zip(_in_cache(before), _in_cache(after), strict=True)
    return torch.stack([pair_sums(one, other) for one, other in pairs]).sum(dim=0)


def _in_cache(piece: Tensor) -> tuple[Tensor, ...]:
    """On a CPU, parts whose temporaries stay in a core's cache: twice as fast as one piece."""
    flat = piece.flatten()
    return flat.split(CACHED) if piece.device.type == "cpu" else (flat,)


@torch.no_grad()
def spectral_norms(pair: Pair) -> tuple[float, float]:
    """The largest singular values of W and of dW.

    A convolution counts as the matrix of its flattened filters, a stack of experts by its largest.

    Raises:
        UnsupportedSetup: a sharded weight.
    """
    if pair.layout() is not None:
        raise UnsupportedSetup(
            f"{pair.name} is sharded over ranks, and spectral norms need whole matrices. Use "
            "norm='frobenius', or compare saved checkpoints."
        )
    shape = pair.shape
    if len(shape) == 3 and is_expert(pair.name):
        found = [_of_matrix(pair, shape[1:], expert) for expert in range(shape[0])]
        before, update = (max(values) for values in zip(*found, strict=True))
        return before, update
    return _of_matrix(pair, shape)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def is_expert(name: str) -> bool:
    """Whether a weight of three dimensions is a stack of experts' matrices, and no convolution."""
    return re.search(r"(^|[._])experts?([._]|$)", name) is not None


def _of_matrix(
    pair: Pair, shape: tuple[int, ...], expert: int | None = None
) -> tuple[float, float]:
    rows, columns = shape[0], math.prod(shape[1:])
    front = () if expert is None else (slice(expert, expert + 1),)

    def blocks(update: bool) -> Iterator[Tensor]:
        step = max(1, PIECE // max(columns, 1))
        rest = tuple(slice(0, length) for length in shape[1:])
        for begin in range(0, rows, step):
            where = (*front, slice(begin, min(begin + step, rows)), *rest)
            before = _wide(pair.before.read(pair.name, where))
            if not update:
                yield before.reshape(-1, columns)
            else:
                after = _wide(pair.after.read(pair.other, where))
                yield (after.to(before.device) - before).reshape(-1, columns)

    def norm(update: bool) -> float:
        read: Callable[[], Iterator[Tensor]] = partial(blocks, update)
        if rows * columns > KEPT:
            return spectral_norm(read, rows, columns)
        kept = list(read())
        return spectral_norm(lambda: kept, rows, columns)

    change = pair.low_rank
    return norm(False), float(change.spectral_norm()) if change is not None else norm(True)
