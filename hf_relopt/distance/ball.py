"""Hold weights in a ball around their initial ones, after each step, sharded or not.

With copies in memory nothing waits for the device: norms, shares and new weights stay on it. Sharded
weights are summed over the ranks with one all-reduce for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_relopt.distance.kept import Copies
from hf_relopt.distance.measure import CACHED, PIECE
from hf_relopt.distance.weights import Slices, Weights, pieces_of
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

    def pieces(self) -> Iterator[tuple[Tensor, Slices]]:
        """Pieces of this rank's shard as views, and where they lie in the full weight."""
        part, offset = local(self.param), self.layout.offset
        for where in pieces_of(tuple(part.shape), offset, PIECE):
            inside = tuple(
                slice(s.start - at, s.stop - at) for s, at in zip(where, offset, strict=True)
            )
            yield part[inside], where


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
        self._copies = initial.tensors if isinstance(initial, Copies) else None
        self._norms = list(norms)
        self._portions = [] if self._copies is None else _portions(self.held)

    @torch.no_grad()
    def pull(self) -> None:
        """Bring back to the surface what has left the ball; every rank takes part."""
        if not self.held:
            return
        if self._copies is None:
            self._pull_in_pieces()
        else:
            self._pull_in_memory(self._copies)

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

    def _pull_in_memory(self, copies: Mapping[str, Tensor]) -> None:
        squares: list[Tensor] = [torch.empty(0)] * len(self.held)
        for portion in self._portions:
            updates, _, _ = self._updates(portion, copies)
            for place, square in zip(portion, local_squares(updates).unbind(), strict=True):
                squares[place] = square
        shares = self._shares(squares)
        for portion in self._portions:
            updates, wide, centres = self._updates(portion, copies)
            own = [shares[place].to(updates[0].dtype) for place in portion]
            # As rules.ball.nearest says it, for many weights at once.
            torch._foreach_mul_(updates, own)
            torch._foreach_add_(updates, centres)
            params = [local(self.held[place].param) for place in portion]
            found = [
                torch.where(share < 1, near, weight)
                for share, near, weight in zip(own, updates, wide, strict=True)
            ]
            torch._foreach_copy_(params, found)

    def _updates(
        self, portion: Sequence[int], copies: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """W - W0, W and W0 of the local shards, in float32 or wider."""
        params = [local(self.held[place].param).detach() for place in portion]
        kind = torch.promote_types(params[0].dtype, torch.float32)
        wide = [param.to(kind) for param in params]
        centres = [local(copies[self.held[place].name]).to(kind) for place in portion]
        return list(torch._foreach_sub(wide, centres)), wide, centres

    def _pull_in_pieces(self) -> None:
        squares = []
        for each in self.held:
            total = torch.zeros((), dtype=torch.float64)
            for piece, where in each.pieces():
                wide = torch.promote_types(piece.dtype, torch.float32)
                initial = self._initial.read(each.name, where).to(piece.device, wide)
                total += local_squares([piece.to(wide) - initial])[0].cpu()
            squares.append(total)
        # What is inside needs no second reading: the host has to know.
        shares = torch.stack([share.cpu() for share in self._shares(squares)])
        for each, share in zip(self.held, shares, strict=True):
            if share >= 1:
                continue
            for piece, where in each.pieces():
                initial = self._initial.read(each.name, where).to(piece.device)
                wide = torch.promote_types(piece.dtype, torch.float32)
                piece.copy_(ball.nearest(piece, initial, share.to(piece.device, wide)))


def _by_device(tensors: Sequence[Tensor]) -> list[list[int]]:
    places: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(place)
    return list(places.values())


def _portions(held: Sequence[Held]) -> list[list[int]]:
    """Weights of one dtype and device that are worked on together."""
    found: list[list[int]] = []
    room: dict[tuple[torch.dtype, torch.device], int] = {}
    last: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place, each in enumerate(held):
        part = local(each.param)
        key = part.dtype, part.device
        if room.get(key, 0) < part.numel() or key not in last:
            last[key], room[key] = [], PORTION
            found.append(last[key])
        last[key].append(place)
        room[key] -= part.numel()
    return found
