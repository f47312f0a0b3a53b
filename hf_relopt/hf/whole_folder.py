"""Folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_relopt.errors import ConfigError, FormatError, one_line


def require_free(place: Path) -> None:
    """Say so if a new folder cannot be made there.

    Raises:
        ConfigError: there is a file, or a folder with something in it, or an unfinished one beside.
    """
    if place.is_dir() and place.samefile(Path.cwd()):
        # Another folder takes its place, in which the shell would not stand any more.
        raise ConfigError(f"{place} is the folder that you are in. Name one below it.")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"{place} is a file. Name a folder that is not there yet.")
    if place.is_dir() and any(place.iterdir()):
        raise ConfigError(
            f"{place} is a folder with files in it, which are kept. Name one that is not there "
            "yet, or an empty one."
        )
    unfinished = _unfinished(place)
    if unfinished.exists():
        raise ConfigError(
            f"{unfinished} is there: another command is writing {place}, or one was killed. Remove "
            "it if nothing is writing."
        )


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """Give a folder to write to; rename it to ``place`` when the block ends without an error.

    Raises:
        ConfigError: see require_free.
        FormatError: no folder can be made there.
    """
    place = place.expanduser().absolute()
    require_free(place)
    unfinished = _unfinished(place)
    try:
        # At once, so that a place where nothing can be written is noticed before the work.
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
    except OSError as error:
        raise FormatError(f"No folder can be made at {place}: {one_line(error)}.") from error
    try:
        yield unfinished
        # Rename replaces an empty folder on POSIX alone.
        if place.is_dir():
            place.rmdir()
        os.replace(unfinished, place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished(place: Path) -> Path:
    place = place.expanduser().absolute()
    return place.with_name(f".{place.name}.unfinished")
