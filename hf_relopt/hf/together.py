"""Decisions of the main process that all processes of a run share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")


def on_main_process(find: Callable[[], Found]) -> Found:
    """What ``find`` returns or raises on the main process, on every process.

    Call it on all of them. If each process read a folder by itself, they might see different states
    of it, and a large checkpoint would be read once per process.
    """
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return find()
    said: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            said[0] = find()
        except Exception as error:
            said[1] = error
    dist.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise said[1]
    return said[0]
