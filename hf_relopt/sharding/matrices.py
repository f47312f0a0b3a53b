"""Full matrices on one rank each, and the results back to the ranks that hold their shards.

Orthogonalization needs a full matrix. Each is gathered to one rank of its process group, so that
the ranks share the work: an all-to-all brings the shards there, another brings the results back.
Where every rank has a copy, as under DDP, nothing needs to be gathered, and one all-gather spreads
the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_relopt.sharding.layout import Shards


@dataclass(frozen=True)
class Matrix:
    """One matrix of a step.

    Attributes:
        local: this rank's shard of it, or all of it.
        shape: of the full matrix.
        shards: how it is sharded; None if this rank has all of it.
        flops: what the rank that gets it has to do, in any unit.
        replicated: has every rank of the run the same matrix, to share the work on?
    """

    local: Tensor
    shape: torch.Size
    shards: Shards | None
    flops: float
    replicated: bool = False


def transform_full(
    matrices: Sequence[Matrix],
    transform: Callable[[Sequence[int], list[Tensor]], list[Tensor]],
) -> list[Tensor]:
    """Let ``transform`` work on full matrices, and return this rank's shards of what it made.

    Every rank of a process group passes the same matrices in the same order.

    Args:
        transform: (places, full matrices) -> as many, of the same shapes. It is called once, with
            the places and the matrices that this rank has to work on.
    """
    groups: dict[object, list[int]] = {}
    copies: list[int] = []
    mine: list[int] = []
    full: list[Tensor] = []
    several = world_size() > 1
    for place, matrix in enumerate(matrices):
        if matrix.shards is not None:
            groups.setdefault(matrix.shards.group, []).append(place)
        elif matrix.replicated and several:
            copies.append(place)
        else:
            mine.append(place)
            full.append(matrix.local)
    shared: list[_Sharded | _Replicated] = [
        _Sharded([matrices[place] for place in places], places) for places in groups.values()
    ]
    if copies:
        shared.append(_Replicated([matrices[place] for place in copies], copies))
    for some in shared:
        mine += some.mine
        full += some.gather()
    done = dict(zip(mine, transform(mine, full), strict=True))
    for some in shared:
        done.update(zip(some.places, some.scatter(done), strict=True))
    return [done[place] for place in range(len(matrices))]


def owners(flops: Sequence[float], ranks: int) -> list[int]:
    """Which rank works on which matrix: the largest first, each to the rank with least to do."""
    load = [0.0] * ranks
    chosen = [0] * len(flops)
    for place in sorted(range(len(flops)), key=lambda n: (-flops[n], n)):
        rank = min(range(ranks), key=lambda r: (load[r], r))
        chosen[place] = rank
        load[rank] += flops[place]
    return chosen


def world_size() -> int:
    """How many processes the run has: those of torch.distributed, or this one."""
    dist = torch.distributed
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Replicated:
    """Matrices that every rank of the run has, and which rank works on which."""

    def __init__(self, matrices: Sequence[Matrix], places: Sequence[int]) -> None:
        self._matrices = matrices
        self.places = places
        self._ranks, self._rank = world_size(), torch.distributed.get_rank()
        self._owner = owners([matrix.flops for matrix in matrices], self._ranks)
        self.mine = [p for p, o in zip(places, self._owner, strict=True) if o == self._rank]

    def gather(self) -> list[Tensor]:
        """The matrices that are this rank's to work on."""
        owned = zip(self._matrices, self._owner, strict=True)
        return [matrix.local for matrix, owner in owned if owner == self._rank]

    def scatter(self, done: dict[int, Tensor]) -> list[Tensor]:
        """Give every rank the results that are ``done`` here; return all of them."""
        like = self._matrices[0].local
        sizes = [0] * self._ranks
        for matrix, owner in zip(self._matrices, self._owner, strict=True):
            sizes[owner] += math.prod(matrix.shape)
        # An all-gather takes as much from each rank. Their work is balanced, so that little of it
        # is padding; each rank's results are sent once, and not once to every other rank.
        most = max(sizes)
        send = like.new_empty(most)
        own = [done[place].reshape(-1) for place in self.mine]
        if own:
            torch.cat(own, out=send[: sizes[self._rank]])
        received = like.new_empty(self._ranks * most)
        torch.distributed.all_gather(list(received.split(most)), send)
        begins = [rank * most for rank in range(self._ranks)]
        result = []
        for matrix, owner in zip(self._matrices, self._owner, strict=True):
            numel = math.prod(matrix.shape)
            result.append(received[begins[owner] :][:numel].view(matrix.shape))
            begins[owner] += numel
        return result


class _Sharded:
    """The matrices that are sharded over one process group, and which rank works on which."""

    def __init__(self, matrices: Sequence[Matrix], places: Sequence[int]) -> None:
        self._matrices = matrices
        self.places = places
        shards = _shards(matrices[0])
        self._group, self._rank, self._ranks = shards.group, shards.rank, len(shards.sizes)
        self._owner = owners([matrix.flops for matrix in matrices], self._ranks)
        self.mine = [p for p, o in zip(places, self._owner, strict=True) if o == self._rank]

    def gather(self) -> list[Tensor]:
        """The full matrices that are this rank's to work on."""
        received = self._all_to_all(
            [matrix.local.reshape(-1) for _, matrix in self._by_owner()],
            self._sizes_by_owner(),
            self._sizes_by_rank(),
        )
        shards: dict[int, list[Tensor]] = {}
        for (place, matrix, rank), flat in zip(self._mine_by_rank(), received, strict=True):
            shards.setdefault(place, []).append(flat.view(_shard_shape(matrix, rank)))
        return [
            torch.cat(shards[place], dim=_shards(matrix).dim)
            for place, matrix in enumerate(self._matrices)
            if self._owner[place] == self._rank
        ]

    def scatter(self, done: dict[int, Tensor]) -> list[Tensor]:
        """Give each rank its shards of what is ``done``; return this rank's of every matrix."""
        outgoing = []
        for place, matrix, rank in self._mine_by_rank():
            shards = _shards(matrix)
            begin = sum(shards.sizes[:rank])
            full = done[self.places[place]]
            outgoing.append(full.narrow(shards.dim, begin, shards.sizes[rank]).reshape(-1))
        received = self._all_to_all(outgoing, self._sizes_by_rank(), self._sizes_by_owner())
        result: list[Tensor] = [torch.empty(0)] * len(self._matrices)
        for (place, matrix), flat in zip(self._by_owner(), received, strict=True):
            result[place] = flat.view(_shard_shape(matrix, self._rank))
        return result

    def _by_owner(self) -> list[tuple[int, Matrix]]:
        """All matrices in the order of the ranks that work on them: what an all-to-all sends."""
        places = sorted(range(len(self._matrices)), key=lambda p: (self._owner[p], p))
        return [(place, self._matrices[place]) for place in places]

    def _mine_by_rank(self) -> list[tuple[int, Matrix, int]]:
        """Our matrices, once for each rank that has a shard: what an all-to-all brings."""
        own = [(p, m) for p, m in enumerate(self._matrices) if self._owner[p] == self._rank]
        return [(place, matrix, rank) for rank in range(self._ranks) for place, matrix in own]

    def _sizes_by_owner(self) -> list[list[int]]:
        """For each rank the sizes of our shards of the matrices that it works on."""
        sizes: list[list[int]] = [[] for _ in range(self._ranks)]
        for place, matrix in self._by_owner():
            sizes[self._owner[place]].append(math.prod(_shard_shape(matrix, self._rank)))
        return sizes

    def _sizes_by_rank(self) -> list[list[int]]:
        """For each rank the sizes of its shards of the matrices that we work on."""
        sizes: list[list[int]] = [[] for _ in range(self._ranks)]
        for _, matrix, rank in self._mine_by_rank():
            sizes[rank].append(math.prod(_shard_shape(matrix, rank)))
        return sizes

    def _all_to_all(
        self, outgoing: list[Tensor], sent: list[list[int]], got: list[list[int]]
    ) -> list[Tensor]:
        """One all-to-all of flat tensors; ``sent`` and ``got`` are their sizes by rank."""
        like = self._matrices[0].local
        send = torch.cat(outgoing) if outgoing else like.new_empty(0)
        receive = like.new_empty(sum(map(sum, got)))
        torch.distributed.all_to_all_single(
            receive,
            send,
            output_split_sizes=[sum(sizes) for sizes in got],
            input_split_sizes=[sum(sizes) for sizes in sent],
            group=self._group,
        )
        return list(receive.split([size for sizes in got for size in sizes]))


def _shards(matrix: Matrix) -> Shards:
    assert matrix.shards is not None
    return matrix.shards


def _shard_shape(matrix: Matrix, rank: int) -> torch.Size:
    shards = _shards(matrix)
    return torch.Size(
        shards.sizes[rank] if dim == shards.dim else size for dim, size in enumerate(matrix.shape)
    )
