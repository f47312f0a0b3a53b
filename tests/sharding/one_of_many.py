"""One process as each rank of many, one after the other: what a rank knows, and what it sends.

No rank waits for another. tests/distributed/ runs the same code on ranks that do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

Result = TypeVar("Result")


@contextmanager
def as_rank(rank: int, shape: tuple[int, ...]) -> Iterator[DeviceMesh]:
    """A mesh of this shape in which the process is ``rank``, and whose collectives do nothing."""
    ranks = torch.Size(shape).numel()
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield init_device_mesh("cpu", shape)
    finally:
        dist.destroy_process_group()


def sharded(full: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Any]) -> DTensor:
    """A rank's DTensor of ``full``, which every rank has: nothing is sent."""
    part = full
    for dim, placement in enumerate(placements):
        if placement.is_shard():
            chunks = part.chunk(mesh.size(dim), placement.dim)
            own = mesh.get_local_rank(dim)
            empty = part.narrow(placement.dim, 0, 0)
            part = chunks[own] if own < len(chunks) else empty
    return DTensor.from_local(
        part.contiguous(), mesh, placements, run_check=False, shape=full.shape, stride=full.stride()
    )


class Replay:
    """Collectives between ranks that run one after the other, again and again.

    In each round a rank receives what the others have sent in the round before, so after as many
    rounds as there are collectives in a row everything has arrived.
    """

    def __init__(self, ranks: int, patch: pytest.MonkeyPatch) -> None:
        self.ranks, self.rank, self.calls = ranks, 0, 0
        self._sent: dict[tuple[int, int], list[torch.Tensor]] = {}
        patch.setattr(dist, "all_to_all_single", self._all_to_all)
        patch.setattr(dist, "all_gather", self._all_gather)
        patch.setattr(dist, "all_reduce", self._all_reduce)
        patch.setattr(dist, "get_rank", lambda: self.rank)
        patch.setattr(dist, "is_initialized", lambda: True)
        patch.setattr(dist, "get_world_size", lambda: ranks)

    def run(self, work: Callable[[int], Result], rounds: int) -> list[Result]:
        """The results of the last round, of each rank."""
        results: list[Result] = []
        for _ in range(rounds):
            results = []
            for rank in range(self.ranks):
                self.rank, self.calls = rank, 0
                results.append(work(rank))
        return results

    def _exchange(self, outgoing: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """What each rank has sent in this call, so far as it has come to it."""
        self._sent[self.calls, self.rank] = [tensor.clone() for tensor in outgoing]
        found = [self._sent.get((self.calls, rank), []) for rank in range(self.ranks)]
        self.calls += 1
        return found

    def _all_to_all(
        self,
        receive: torch.Tensor,
        send: torch.Tensor,
        output_split_sizes: list[int],
        input_split_sizes: list[int],
        group: Any,
    ) -> None:
        sent = self._exchange(list(send.split(input_split_sizes)))
        receive.zero_()
        for target, tensors in zip(receive.split(output_split_sizes), sent, strict=True):
            if tensors:
                assert target.shape == tensors[self.rank].shape, "the ranks disagree on sizes"
                target.copy_(tensors[self.rank])

    def _all_gather(self, receive: list[torch.Tensor], send: torch.Tensor) -> None:
        for target, tensors in zip(receive, self._exchange([send]), strict=True):
            target.zero_()
            if tensors:
                assert target.shape == tensors[0].shape, "the ranks disagree on sizes"
                target.copy_(tensors[0])

    def _all_reduce(self, tensor: torch.Tensor, group: Any) -> None:
        sent = self._exchange([tensor])
        tensor.zero_()
        for tensors in sent:
            if tensors:
                assert tensor.shape == tensors[0].shape, "the ranks disagree on sizes"
                tensor.add_(tensors[0])
