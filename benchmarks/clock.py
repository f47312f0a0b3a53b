"""The time of a training, with breaks, and the most memory it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Runs from now on: processor time on a CPU, the clock's time on a GPU.

    Args:
        device: "cpu" or "cuda". A GPU is waited for at the beginning and the end of each stretch.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._before = 0.0
        self._peak = 0
        self._begin = self._start()

    def seconds(self) -> float:
        """Seconds up to now without the breaks."""
        return self._before + self._now() - self._begin

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside counts neither in time nor in memory."""
        self._before = self.seconds()
        self._peak = self.peak_bytes() or 0
        yield
        self._begin = self._start()

    def peak_bytes(self) -> int | None:
        """The most that torch had allocated on a GPU at once; None on a CPU."""
        return max(self._peak, torch.cuda.max_memory_allocated()) if self._cuda else None

    def _start(self) -> float:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        return self._now()

    def _now(self) -> float:
        if not self._cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()
