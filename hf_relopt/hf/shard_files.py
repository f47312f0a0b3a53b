"""Folders that torch.distributed.checkpoint wrote, read without running what they hold.

torch unpickles two things in such a folder without any restriction: ``.metadata``, and every entry
that is not a tensor (``DefaultLoadPlanner.load_bytes``). A prepared file could run its code there,
so a folder is looked through here before torch gets to see it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from hf_relopt.errors import one_line
from hf_relopt.hf.saved_files import archive_fault, why_refused
from hf_relopt.hf.shard_metadata import Entry, read_metadata


def is_sharded(folder: Path) -> bool:
    """Whether torch.distributed.checkpoint might read this folder."""
    return any(folder.glob("*.metadata"))


def sharded_fault(folder: Path) -> str | None:
    """What is missing, damaged or not to be trusted in such a folder; None if nothing is."""
    # A reader that knows its rank takes a file of its own: __0.metadata.
    names = sorted({".metadata", *(path.name for path in folder.glob("*.metadata"))})
    for name in names:
        try:
            entries = read_metadata(folder, name).entries
        except FileNotFoundError:
            return f"{name}, which is written last, is missing"
        # Half a file and a prepared one may raise anything, also RecursionError and MemoryError.
        except Exception as error:
            return f"{name} cannot be read ({one_line(error)})"
        for entry in sorted(entries, key=lambda entry: (entry.file, entry.offset)):
            if fault := _entry_fault(folder / entry.file, entry):
                return f"{entry.file} {fault}"
    return None


def _entry_fault(path: Path, entry: Entry) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size < entry.offset + entry.length:
        return "is truncated"
    with path.open("rb") as file:
        if entry.is_tensor:
            # torch itself reads tensors with weights_only: their bytes are all there is to check.
            return archive_fault(io.BufferedReader(_Window(file, entry.offset, entry.length)))
        file.seek(entry.offset)
        content = io.BytesIO(file.read(entry.length))
    if fault := archive_fault(content):
        return fault
    content.seek(0)
    try:
        torch.load(content, weights_only=True)
    except Exception as error:
        return f"holds an entry that {why_refused(error)}"
    return None


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
        super().__init__()
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(view[: max(0, min(len(view), self._length - self._at))])
        self._at += count
        return count
