"""What happens to files of a checkpoint: they are cut short, emptied, replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch


def cut(path: Path) -> None:
    """What a full disk or a killed process leaves behind."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def header_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    """A block that a disk has lost: the length stays."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)


def holding(content: bytes | str) -> Callable[[Path], None]:
    content = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(content) and None


def header(content: bytes, length: int | None = None) -> Callable[[Path], None]:
    """A safetensors file of this header, and no weights."""
    length = len(content) if length is None else length
    return holding(length.to_bytes(8, "little") + content)


def without(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = json.loads(path.read_text())
        del state[name]
        path.write_text(json.dumps(state))

    return damage


DEEP = "[" * 100_000 + "]" * 100_000


def changed(**fields: object) -> Callable[[Path], None]:
    """Fields of a JSON file, or of a dictionary that torch has saved."""

    def damage(path: Path) -> None:
        if path.suffix == ".json":
            path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        else:
            torch.save({**torch.load(path, weights_only=False), **fields}, path)

    return damage


def saved(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def linked(to: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(to)

    return damage


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
