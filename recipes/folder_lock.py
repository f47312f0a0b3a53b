"""One process per run folder: a second start waits until the first has ended.

A launcher that is killed can leave its worker training. The operating system drops the lock when
the process that holds it ends, however it ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """A lock on a directory itself; it leaves no file behind."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def acquire(self, folder: Path, say: Callable[[str], None]) -> None:
        """Lock the folder, if it exists; say so if that takes waiting.

        Args:
            folder: the directory.
            say: gets one line if another process holds it.
        """
        if fcntl is None or self._descriptor is not None or not folder.is_dir():
            return
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is using {folder}: waiting until it ends (Ctrl-C to give up)")
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError:
            self.release()  # a file system without locks

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
