"""Hold weights in a ball around their initial ones, after each step, sharded or not.

With copies on an accelerator nothing waits for it: norms, shares and new weights stay there. On a
CPU, or read from the disk, a piece at a time is worked on. What ranks have summed of their shards
is added with one all-reduce for all weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_relopt.distance.kept import Copies
from hf_relopt.distance.measure import CACHED, PIECE
from hf_relopt.distance.weights import Slices, Weights, pieces_of, within
from hf_relopt.rules import ball
from hf_relopt.sharding.layout import Layout, layout_of, local
from hf_relopt.sharding.reduce import all_reduced

# Entries whose distances exist at once, in float32.
PORTION = 2**26


@dataclass(frozen=True)
class Held:
    """A weight that is held.

    Attributes:
        name: as the model has it.
        param: the weight.
        layout: how it lies over the ranks.
    """

    name: str
    param: Tensor
    layout: Layout

    def pieces(self, size: int = PIECE) -> Iterator[tuple[Tensor, Slices]]:
        """Pieces of this rank's shard as views, and where they lie in the full weight."""
        part, offset = local(self.param), self.layout.offset
        for where in pieces_of(tuple(part.shape), offset, size):
            yield part[within(where, offset)], where


def held_as(name: str, param: Tensor) -> Held:
    """A weight as it lies now."""
    return Held(name, param, layout_of(param))


@torch.no_grad()
def local_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The squares of the norms of plain tensors on one device, summed in float64: [n]."""
    device = tensors[0].device
    if device.type == "mps":  # which has no float64
        return torch.stack([each.float().square().sum() for each in tensors])
    # On a CPU in parts that stay in a core's cache.
    longest = CACHED if device.type == "cpu" else max(1, *[each.numel() for each in tensors])
    parts = [list(each.reshape(-1).split(longest)) for each in tensors]
    norms = torch.stack(torch._foreach_norm([p for own in parts for p in own], 2, torch.float64))
    counts = [len(own) for own in parts]
    squares = norms * norms
    if max(counts) == 1:
        return squares
    return torch.stack([own.sum() for own in squares.split(counts)])


def full_squares(squares: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
    """Squares of norms of shards, as those of full weights; one all-reduce."""
    return all_reduced([each.reshape(()) for each in squares], layouts)


class Ball:
    """Weights that stay within ``rho`` times their initial norm of where they began.

    Args:
        held: the weights; none of them began at zero.
        initial: where they began: copies in memory, or what is read anew in each step.
        norms: of the full initial weights, 0-dim, on the device of each.
        rho: the radius.
    """

    def __init__(
        self, held: Sequence[Held], initial: Weights, norms: Sequence[Tensor], rho: float
    ) -> None:
        self.held, self.rho, self._initial = list(held), rho, initial
        self._norms = list(norms)
        # By what is worked on at once: portions on an accelerator, one weight after the other.
        copied = isinstance(initial, Copies)
        self._size = CACHED if copied else PIECE
        there = [copied and local(each.param).device.type != "cpu" for each in self.held]
        self._portions = _portions(self.held, [n for n, on in enumerate(there) if on])
        self._singly = [n for n, on in enumerate(there) if not on]

    @torch.no_grad()
    def pull(self) -> None:
        """Bring back to the surface what has left the ball; every rank takes part."""
        squares: list[Tensor] = [torch.empty(0)] * len(self.held)
        for portion in self._portions:
            found = local_squares(self._updates(portion)[0]).unbind()
            for place, square in zip(portion, found, strict=True):
                squares[place] = square
        for place in self._singly:
            squares[place] = self._square_in_pieces(self.held[place])
        shares = self._shares(squares)
        for portion in self._portions:
            self._move_together(portion, shares)
        for place in self._singly:
            # Where the host has the share, what is inside needs no second look.
            if shares[place] < 1:
                self._move_in_pieces(self.held[place], shares[place])

    def _shares(self, squares: Sequence[Tensor]) -> list[Tensor]:
        full = full_squares(squares, [each.layout for each in self.held])
        shares = list(full)
        for places in _by_device(full):
            updates = torch.stack([full[place] for place in places]).sqrt()
            norms = torch.stack([self._norms[place] for place in places])
            found = ball.kept_share(updates, norms, self.rho).unbind()
            for place, share in zip(places, found, strict=True):
                shares[place] = share
        return shares

    def _updates(self, portion: Sequence[int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """W - W0, W and W0 of local shards of one dtype, in float32 or wider."""
        assert isinstance(self._initial, Copies)
        copies = self._initial.tensors
        params = [local(self.held[place].param) for place in portion]
        kind = torch.promote_types(params[0].dtype, torch.float32)
        wide = [param.to(kind) for param in params]
        centres = [local(copies[self.held[place].name]).to(kind) for place in portion]
        return list(torch._foreach_sub(wide, centres)), wide, centres

    def _move_together(self, portion: Sequence[int], shares: Sequence[Tensor]) -> None:
        """As rules.ball.nearest says it, for many weights at once."""
        updates, wide, centres = self._updates(portion)
        own = [shares[place].to(updates[0].dtype) for place in portion]
        torch._foreach_mul_(updates, own)
        torch._foreach_add_(updates, centres)
        found = [
            torch.where(share < 1, near, weight)
            for share, near, weight in zip(own, updates, wide, strict=True)
        ]
        torch._foreach_copy_([local(self.held[place].param) for place in portion], found)

    def _square_in_pieces(self, held: Held) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for piece, initial in self._in_pieces(held):
            total += local_squares([piece.to(initial.dtype) - initial])[0].cpu()
        return total

    def _move_in_pieces(self, held: Held, share: Tensor) -> None:
        for piece, initial in self._in_pieces(held):
            piece.copy_(ball.nearest(piece, initial, share.to(piece.device, initial.dtype)))

    def _in_pieces(self, held: Held) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces of W, as views, and of W0, in float32 or wider."""
        for piece, where in held.pieces(self._size):
            wide = torch.promote_types(piece.dtype, torch.float32)
            yield piece, self._initial.read(held.name, where).to(piece.device, wide)


def _by_device(tensors: Sequence[Tensor]) -> list[list[int]]:
    places: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(place)
    return list(places.values())


def _portions(held: Sequence[Held], places: Sequence[int]) -> list[list[int]]:
    """Those at ``places`` by what is worked on together: weights of one dtype and device."""
    found: list[list[int]] = []
    room: dict[tuple[torch.dtype, torch.device], int] = {}
    last: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place in places:
        part = local(held[place].param)
        key = part.dtype, part.device
        if room.get(key, 0) < part.numel() or key not in last:
            last[key], room[key] = [], PORTION
            found.append(last[key])
        last[key].append(place)
        room[key] -= part.numel()
    return found
