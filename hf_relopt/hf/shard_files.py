"""Folders that torch.distributed.checkpoint wrote, read without running what they hold.

torch unpickles two things in such a folder without any restriction: ``.metadata``, and every entry
that is not a tensor (``DefaultLoadPlanner.load_bytes``). A prepared file could run its code there,
so a folder is looked through here before torch gets to see it.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_relopt.errors import one_line
from hf_relopt.hf.saved_files import archive_fault, why_refused

_CLASSES: Mapping[str, frozenset[str]] = {
    "torch": frozenset({"Size"}),
    # A function from a name to a layout, which is how torch pickles one.
    "torch.serialization": frozenset({"_get_layout"}),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "collections": frozenset({"OrderedDict"}),
}
# The folder's own place when it was written: a name is all that is wanted of it.
_PATHS = {"PosixPath": "PurePosixPath", "WindowsPath": "PureWindowsPath"}


class _Restricted(pickle.Unpickler):
    """Knows the classes of a checkpoint's metadata, and nothing else that could be called."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name in {*_PATHS, *_PATHS.values()}:
            return getattr(pathlib, _PATHS.get(name, name))
        # No dotted names: they would reach through a class to what its module has imported.
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


def read_metadata(folder: Path, name: str = ".metadata") -> Any:
    """The ``Metadata`` that torch.distributed.checkpoint wrote into ``folder``; runs nothing.

    Raises:
        FileNotFoundError: there is none.
        Exception: whatever reading half a file, or a prepared one, comes to.
    """
    with (folder / name).open("rb") as file:
        return _Restricted(file).load()


def sharded_fault(folder: Path) -> str | None:
    """What is missing, damaged or not to be trusted in such a folder; None if nothing is."""
    # A reader that knows its rank takes a file of its own: __0.metadata.
    names = sorted({".metadata", *(path.name for path in folder.glob("*.metadata"))})
    for name in names:
        try:
            metadata = read_metadata(folder, name)
            entries = [(key, *_place(info)) for key, info in metadata.storage_data.items()]
            kinds = {key: type(kind).__name__ for key, kind in _kinds(metadata).items()}
        except FileNotFoundError:
            return f"{name}, which is written last, is missing"
        # Half a file and a prepared one may raise anything, also RecursionError and MemoryError.
        except Exception as error:
            return f"{name} cannot be read ({one_line(error)})"
        for key, file, offset, length in sorted(entries, key=lambda entry: entry[1:3]):
            is_tensor = kinds.get(str(getattr(key, "fqn", ""))) == "TensorStorageMetadata"
            if fault := _entry_fault(folder / file, offset, length, is_tensor):
                return f"{file} {fault}"
    return None


def _kinds(metadata: Any) -> dict[str, Any]:
    return dict(metadata.state_dict_metadata)


def _place(info: Any) -> tuple[str, int, int]:
    """(file, offset, length) of one entry."""
    file, offset, length = info.relative_path, info.offset, info.length
    if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
        raise ValueError(f"an entry lies in {file!r}, which is no file of this folder")
    if not (isinstance(offset, int) and isinstance(length, int) and offset >= 0 and length >= 0):
        raise ValueError(f"an entry of {file} lies at {offset!r} and is {length!r} long")
    if getattr(info, "transform_descriptors", None):
        raise ValueError(f"{file} was transformed when it was written, and cannot be checked")
    return file, offset, length


def _entry_fault(path: Path, offset: int, length: int, is_tensor: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size < offset + length:
        return "is truncated"
    with path.open("rb") as file:
        if is_tensor:
            # torch itself reads tensors with weights_only: their bytes are all there is to check.
            return archive_fault(io.BufferedReader(_Window(file, offset, length)))
        file.seek(offset)
        content = io.BytesIO(file.read(length))
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
