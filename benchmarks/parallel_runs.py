"""Runs in other processes, a few at a time, that end with the program that began them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

import torch

Given = TypeVar("Given")
Found = TypeVar("Found")


def run_all(
    work: Callable[[Given], Found], given: Sequence[Given], jobs: int, threads: int
) -> Iterator[tuple[Given, Found]]:
    """Each of `given` with what `work` makes of it, in the order in which runs end.

    Args:
        work: what another process can import and call.
        jobs: so many processes at a time; 1 for this one.
        threads: torch's, of each run.
    """
    if jobs == 1:
        torch.set_num_threads(threads)
        yield from ((each, work(each)) for each in given)
        return
    waiting, running = list(reversed(given)), dict[Future[Found], Given]()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, _begin, (threads,)) as pool:
        # No more than can run: what waits in a pool begins even after an interruption.
        while waiting or running:
            while waiting and len(running) < jobs:
                each = waiting.pop()
                running[pool.submit(work, each)] = each
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(job), job.result()


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """If the program is killed, no run goes on by itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
