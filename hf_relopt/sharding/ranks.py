"""Which of several processes this one is, and waiting for the others."""

from __future__ import annotations

import torch


def rank_and_count() -> tuple[int, int]:
    """The rank of this process and how many there are; (0, 1) without a process group."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def wait_for_all() -> None:
    """Return once every process has come here; at once where there is only one."""
    if rank_and_count()[1] > 1:
        torch.distributed.barrier()
