"""Whole matrices, each worked on by one rank, wherever their parts or copies lie.

Parts go to the rank and come back in two exchanges for all of them; of copies only the results are
gathered, in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_relopt.sharding.layout import Cut


@dataclass(frozen=True)
class Matrix:
    """One matrix of a step.

    Attributes:
        part: what this rank holds of it; all of it if ``cut`` is None.
        shared: has every process of the run the same whole matrix?
        shape: of the whole.
        work: what a rank that gets it has to do, in any unit.
    """

    part: Tensor
    shape: torch.Size
    cut: Cut | None
    work: float
    shared: bool = False


def transform_whole(
    matrices: Sequence[Matrix],
    transform: Callable[[Sequence[int], list[Tensor]], list[Tensor]],
) -> list[Tensor]:
    """Let ``transform`` work on whole matrices, and return this rank's parts of what it made.

    Each matrix that is cut goes to one rank of its process group: one all-to-all brings the parts
    there and one brings the results back. Shared ones are worked on by one rank each, and one more
    brings the results to all. Every rank of a group passes the same matrices in the same
    order.

    Args:
        transform: (numbers, whole matrices) -> as many, of the same shapes. It is called once,
            with those that this rank has to work on.
    """
    groups: dict[object, list[int]] = {}
    copies: list[int] = []
    mine: list[int] = []
    whole: list[Tensor] = []
    together = processes() > 1
    for number, matrix in enumerate(matrices):
        if matrix.cut is not None:
            groups.setdefault(matrix.cut.group, []).append(number)
        elif matrix.shared and together:
            copies.append(number)
        else:
            mine.append(number)
            whole.append(matrix.part)
    shares: list[_Share | _Copies] = [
        _Share([matrices[number] for number in numbers], numbers) for numbers in groups.values()
    ]
    if copies:
        shares.append(_Copies([matrices[number] for number in copies], copies))
    for share in shares:
        mine += share.mine
        whole += share.gather()
    done = dict(zip(mine, transform(mine, whole), strict=True))
    for share in shares:
        done.update(zip(share.numbers, share.scatter(done), strict=True))
    return [done[number] for number in range(len(matrices))]


def owners(work: Sequence[float], ranks: int) -> list[int]:
    """Which rank works on which matrix: the largest first, each to the rank with least to do."""
    load = [0.0] * ranks
    chosen = [0] * len(work)
    for number in sorted(range(len(work)), key=lambda n: (-work[n], n)):
        rank = min(range(ranks), key=lambda r: (load[r], r))
        chosen[number] = rank
        load[rank] += work[number]
    return chosen


def processes() -> int:
    """How many processes the run has: those of torch.distributed, or this one."""
    dist = torch.distributed
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Copies:
    """Matrices that every process of the run has, and which rank works on which."""

    def __init__(self, matrices: Sequence[Matrix], numbers: Sequence[int]) -> None:
        self._matrices = matrices
        self.numbers = numbers
        self._ranks, self._rank = processes(), torch.distributed.get_rank()
        self._owner = owners([matrix.work for matrix in matrices], self._ranks)
        self.mine = [n for n, o in zip(numbers, self._owner, strict=True) if o == self._rank]

    def gather(self) -> list[Tensor]:
        """The matrices that are this rank's to work on."""
        owned = zip(self._matrices, self._owner, strict=True)
        return [matrix.part for matrix, owner in owned if owner == self._rank]

    def scatter(self, done: dict[int, Tensor]) -> list[Tensor]:
        """Give every rank the results that are ``done`` here; return all of them."""
        like = self._matrices[0].part
        sizes = [0] * self._ranks
        for matrix, owner in zip(self._matrices, self._owner, strict=True):
            sizes[owner] += math.prod(matrix.shape)
        # Each rank sends its results once. An all-gather takes as much from each: the load is
        # balanced, so that little is padding.
        most = max(sizes)
        send = like.new_empty(most)
        own = [done[number].reshape(-1) for number in self.mine]
        if own:
            torch.cat(own, out=send[: sizes[self._rank]])
        everything = like.new_empty(self._ranks * most)
        torch.distributed.all_gather(list(everything.split(most)), send)
        begins = [rank * most for rank in range(self._ranks)]
        result = []
        for matrix, owner in zip(self._matrices, self._owner, strict=True):
            numel = math.prod(matrix.shape)
            result.append(everything[begins[owner] :][:numel].view(matrix.shape))
            begins[owner] += numel
        return result


class _Share:
    """The matrices of one process group, and which rank works on which."""

    def __init__(self, matrices: Sequence[Matrix], numbers: Sequence[int]) -> None:
        self._matrices = matrices
        self.numbers = numbers
        cut = matrices[0].cut
        assert cut is not None
        self._group, self._rank, self._ranks = cut.group, cut.rank, len(cut.sizes)
        self._owner = owners([matrix.work for matrix in matrices], self._ranks)
        self.mine = [n for n, o in zip(numbers, self._owner, strict=True) if o == self._rank]

    def gather(self) -> list[Tensor]:
        """The whole matrices that are this rank's to work on."""
        received = self._exchange(
            [m.part.reshape(-1) for _, m in self._by_owner()], self._own_sizes(), self._sizes()
        )
        parts: dict[int, list[Tensor]] = {}
        for (place, matrix, rank), flat in zip(self._mine_by_rank(), received, strict=True):
            parts.setdefault(place, []).append(flat.view(_part_shape(matrix, rank)))
        return [
            torch.cat(parts[place], dim=_cut(matrix).dim)
            for place, matrix in enumerate(self._matrices)
            if self._owner[place] == self._rank
        ]

    def scatter(self, done: dict[int, Tensor]) -> list[Tensor]:
        """Give each rank its parts of what is ``done``; return this rank's part of every matrix."""
        outgoing = []
        for place, matrix, rank in self._mine_by_rank():
            cut = _cut(matrix)
            first = sum(cut.sizes[:rank])
            whole = done[self.numbers[place]]
            outgoing.append(whole.narrow(cut.dim, first, cut.sizes[rank]).reshape(-1))
        received = self._exchange(outgoing, self._sizes(), self._own_sizes())
        result: list[Tensor] = [torch.empty(0)] * len(self._matrices)
        for (place, matrix), flat in zip(self._by_owner(), received, strict=True):
            result[place] = flat.view(_part_shape(matrix, self._rank))
        return result

    def _by_owner(self) -> list[tuple[int, Matrix]]:
        """All matrices in the order of the ranks they belong to."""
        places = sorted(range(len(self._matrices)), key=lambda p: (self._owner[p], p))
        return [(place, self._matrices[place]) for place in places]

    def _mine_by_rank(self) -> list[tuple[int, Matrix, int]]:
        """Matrices that are this rank's to work on, once for each rank that has a part."""
        own = [(p, m) for p, m in enumerate(self._matrices) if self._owner[p] == self._rank]
        return [(place, matrix, rank) for rank in range(self._ranks) for place, matrix in own]

    def _own_sizes(self) -> list[list[int]]:
        """For each owner the sizes of this rank's parts of its matrices."""
        sizes: list[list[int]] = [[] for _ in range(self._ranks)]
        for place, matrix in self._by_owner():
            sizes[self._owner[place]].append(math.prod(_part_shape(matrix, self._rank)))
        return sizes

    def _sizes(self) -> list[list[int]]:
        """For each rank the sizes of its parts of this rank's matrices."""
        sizes: list[list[int]] = [[] for _ in range(self._ranks)]
        for _, matrix, rank in self._mine_by_rank():
            sizes[rank].append(math.prod(_part_shape(matrix, rank)))
        return sizes

    def _exchange(
        self, outgoing: list[Tensor], sent: list[list[int]], got: list[list[int]]
    ) -> list[Tensor]:
        """One all-to-all of flat tensors; ``sent`` and ``got`` are their sizes by rank."""
        like = self._matrices[0].part
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


def _cut(matrix: Matrix) -> Cut:
    assert matrix.cut is not None
    return matrix.cut


def _part_shape(matrix: Matrix, rank: int) -> torch.Size:
    cut = _cut(matrix)
    return torch.Size(
        cut.sizes[rank] if dim == cut.dim else size for dim, size in enumerate(matrix.shape)
    )
