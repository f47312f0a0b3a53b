"""Parts: what a backend works on. Views of weights in which it can tell one slice from another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_relopt.backends.packed import Formula
from hf_relopt.rules.rule import Sums, Update


@dataclass(frozen=True, eq=False)
class View:
    """How a tensor of the shape of a shard is looked at: as slices that follow each other.

    Made once for each weight; it is told apart from others by identity.

    Attributes:
        first: the place of its first slice among those of its bundle.
        count: slices. With one, all entries are that slice; with more, each index of the first
            dimension is one.
        shape: of the view.
        origin, strides: an entry's position in the full tensor, row by row, is the origin plus its
            indices times the strides. Stochastic rounding draws its noise by it.
        split: (dim, count, size): the tensor is cut into blocks of one size along a dimension, and
            their count becomes the first.
        narrow: (dim, begin, length): the tensor is cut to a part of a dimension.
    """

    first: int
    count: int
    shape: tuple[int, ...]
    origin: int
    strides: tuple[int, ...]
    split: tuple[int, int, int] | None = None
    narrow: tuple[int, int, int] | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The view of ``tensor``."""
        if self.split is not None:
            dim, count, size = self.split
            # Equal blocks of columns are strided views, and no copy is made of them.
            return tensor.unflatten(dim, (count, size)).movedim(dim, 0)
        return tensor if self.narrow is None else tensor.narrow(*self.narrow)

    @cached_property
    def numel(self) -> int:
        """Entries."""
        return math.prod(self.shape)

    @cached_property
    def in_one_run(self) -> bool:
        """True if each entry's position is the one before it plus one."""
        stride = 1
        for size, own in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and own != stride:
                return False
            stride *= size
        return True


class Part(NamedTuple):
    """One view in a step, and the tensors that belong together in it, all of its shape.

    ``weight`` and ``buffers`` are written to; ``source`` is the gradient or the direction.
    """

    view: View
    weight: Tensor
    source: Tensor
    buffers: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (self.weight, self.source, *self.buffers)


@dataclass(frozen=True)
class Equation:
    """What a backend computes of each part: a rule's update, or one of moments."""

    update: Update
    constants: dict[str, Any]
    maximize: bool


@dataclass(frozen=True)
class Decision:
    """What one step does with each of S slices.

    ``coefficients`` are 0-dim (the same for all) or [S]; ``learn`` and ``move`` are bool [S]: may
    this slice's buffers, its weights change in this step? ``keys`` are the keys of the rounding
    noise, int32 [S], or None to round to nearest (or not at all).
    """

    coefficients: dict[str, Tensor]
    learn: Tensor
    move: Tensor
    keys: Tensor | None

    def narrow(self, first: int, count: int) -> Decision:
        """The same for ``count`` slices from ``first`` on."""
        pick = slice(first, first + count)
        return Decision(
            {k: v if v.dim() == 0 else v[pick] for k, v in self.coefficients.items()},
            self.learn[pick],
            self.move[pick],
            None if self.keys is None else self.keys[pick],
        )

    def shaped(self, first: int, count: int, dims: int) -> Decision:
        """That in a shape that meets a view's ``dims`` dimensions: 0-dim for one slice."""

        def shape(values: Tensor) -> Tensor:
            if values.dim() == 0:
                return values
            if count == 1:
                return values[first]
            return values[first : first + count].view(-1, *[1] * (dims - 1))

        return Decision(
            {name: shape(values) for name, values in self.coefficients.items()},
            shape(self.learn),
            shape(self.move),
            None if self.keys is None else shape(self.keys),
        )


@dataclass(frozen=True)
class Direct:
    """T parts of one slice each that follow their gradients, from their sums to the new weights.

    Attributes:
        states: the numbers that each keeps, of one entry, stepped in place.
        numel, lr: [T]; ``number`` too, or None to round to nearest.
        decide: (state, rows [1, 1 to 3], numel, number, lr) -> (new state, Decision) of one part;
            hashable, and equal ones decide alike.
    """

    parts: Sequence[Part]
    equation: Equation
    sums: Sums
    states: Sequence[dict[str, Tensor]]
    numel: Tensor
    number: Tensor | None
    lr: Tensor
    decide: Callable[..., tuple[dict[str, Tensor], Decision]]

    def only(self, place: int) -> Direct:
        """The same for one part."""
        pick = slice(place, place + 1)
        return replace(
            self,
            parts=self.parts[pick],
            states=self.states[pick],
            numel=self.numel[pick],
            number=None if self.number is None else self.number[pick],
            lr=self.lr[pick],
        )


@dataclass(frozen=True)
class OneLook:
    """Parts whose slices are summed, decided on and stepped one by one, each with one look at it.

    Attributes:
        parts, equation: as for ``Backend.update``.
        sums: "norms" or "cosine".
        formula: from ``grad_norm``, ``param_norm``, perhaps ``cosine``, and what is given, to the
            names in ``into``, the coefficients of the update, ``may_move`` and perhaps ``keys``.
        given: packed numbers, [S] or 0-dim, ``learn`` among them.
        into: [S], where results of these names are kept; they may be among the given ones.
    """

    parts: Sequence[Part]
    equation: Equation
    sums: Sums
    formula: Formula
    given: dict[str, Tensor]
    into: dict[str, Tensor]

    @property
    def is_noisy(self) -> bool:
        """True if the weights are rounded stochastically."""
        return "number" in self.given


@dataclass(frozen=True)
class Piece:
    """The same piece of several tensors, small enough to be worked on at once.

    Attributes:
        first, count: its slices, as for a view.
        origin, strides: its entries' positions, as for a view.
    """

    tensors: tuple[Tensor, ...]
    first: int
    count: int
    origin: int
    strides: tuple[int, ...]

    def positions(self) -> Tensor:
        """int32: each entry's position in the full tensor (wrapping beyond 2^32)."""
        shape, device = self.tensors[0].shape, self.tensors[0].device
        positions = torch.full((), self.origin, dtype=torch.int64, device=device)
        for dim, stride in enumerate(self.strides):
            along = torch.arange(shape[dim], device=device) * stride
            positions = positions + along.view(-1, *[1] * (len(shape) - 1 - dim))
        return positions.to(torch.int32).expand(shape)

    def narrow(self, dim: int, begin: int, length: int) -> Piece:
        """A piece of the piece along one dimension."""
        moved = begin if dim == 0 and self.count > 1 else 0
        return replace(
            self,
            tensors=tuple([tensor.narrow(dim, begin, length) for tensor in self.tensors]),
            first=self.first + moved,
            count=length if dim == 0 and self.count > 1 else self.count,
            origin=self.origin + begin * self.strides[dim],
        )


def pieces(tensors: tuple[Tensor, ...], view: View, size: int) -> Iterator[Piece]:
    """Cut tensors of a view's shape into pieces of about ``size`` entries, whatever their layouts.

    All of them are views of the tensors. What is contiguous is cut as a flat tensor, the rest
    along its longest dimension.
    """
    piece = Piece(tensors, view.first, view.count, view.origin, view.strides)
    if view.count > 1:
        yield from _pieces_of_slices(piece, size)
        return
    if view.in_one_run and all([tensor.is_contiguous() for tensor in tensors]):
        flat = tuple([tensor.view(-1) for tensor in tensors])
        piece = replace(piece, tensors=flat, strides=(1,))
    yield from _pieces_of_one(piece, size)


def _pieces_of_slices(piece: Piece, size: int) -> Iterator[Piece]:
    """Some slices at once; where one alone is too large, pieces of it."""
    each = math.prod(piece.tensors[0].shape[1:])
    if each > size:
        for place in range(piece.count):
            one = piece.narrow(0, place, 1)
            yield from _pieces_of_one(replace(one, count=1), size)
        return
    rows = max(1, size // max(1, each))
    for begin in range(0, piece.count, rows):
        yield piece.narrow(0, begin, min(rows, piece.count - begin))


def _pieces_of_one(piece: Piece, size: int) -> Iterator[Piece]:
    shape, numel = piece.tensors[0].shape, piece.tensors[0].numel()
    if numel <= size:
        yield piece
        return
    dim = max(range(len(shape)), key=lambda d: shape[d])
    length = max(1, size * shape[dim] // numel)
    for begin in range(0, shape[dim], length):
        yield piece.narrow(dim, begin, min(length, shape[dim] - begin))


def piece_size(device: torch.device) -> int:
    """Entries worked on at once: what stays in a core's cache, or few enough to bound memory.

    A rule holds up to eight float32 temporaries per entry, so an accelerator's 2^23 entries are
    256 MB, and a CPU's 2^18 fit the second-level cache with room for the operands.
    """
    return 2**18 if device.type == "cpu" else 2**23
