"""The folder of one run: what it was asked to do, how far it came, whether it is finished.

`run.json` is the record. It is only ever replaced as a whole, so a process that is killed while
writing leaves the old one. "finished" is its last entry to be written: until then a new start
resumes from the last complete checkpoint, after that a new start changes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_relopt.errors import ConfigError

RECORD_NAME = "run.json"


class RunFolder:
    """Knows the record of a run and keeps it safe.

    Args:
        path: the output directory. It is not created before `begin`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.record: dict[str, Any] = self._read()

    @property
    def finished(self) -> bool:
        """Whether a run in this folder has written all of its results."""
        return bool(self.record.get("finished")) and not self.being_emptied

    @property
    def being_emptied(self) -> bool:
        """Whether a start with --overwrite_output_dir was killed while it emptied the folder."""
        return bool(self.record.get("being_emptied"))

    @property
    def begun(self) -> bool:
        """Whether a run was started here before."""
        return bool(self.record)

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / RECORD_NAME).read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot read {self.path / RECORD_NAME}: {error}. Mend or remove that file, or "
                "take another --output_dir."
            ) from error

    def check(self, recipe: dict[str, Any], *, overwrite: bool) -> None:
        """Refuse, before anything is written, a folder this run must not or cannot write into.

        Args:
            recipe: the settings that make this run the run it is.
            overwrite: whether the user wants to lose what is there.

        Raises:
            ConfigError: folder not writable, full of other files, or of a run with other settings.
        """
        self._check_writable()
        if self.begun:
            if not overwrite and not self.being_emptied:
                self._check_same(recipe)
        elif self.path.is_dir() and any(not _is_unfinished(path) for path in self.path.iterdir()):
            raise ConfigError(
                f"{self.path} holds files but no {RECORD_NAME}, so no recipe wrote them. Take "
                "another --output_dir (or --run_name), or empty it."
            )

    def _check_same(self, recipe: dict[str, Any]) -> None:
        before = self.record.get("recipe", {})
        now = json.loads(json.dumps(recipe))
        changed = [
            f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise ConfigError(
                f"{self.path} holds a run with other settings: {'; '.join(changed)}. Give the "
                "same settings to go on with it, another --run_name for a new run, or "
                "--overwrite_output_dir to lose it and start over."
            )

    def _check_writable(self) -> None:
        there = self.path
        while not there.exists() and there != there.parent:
            there = there.parent
        try:
            if not there.is_dir():
                raise NotADirectoryError(f"{there} is a file")
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise ConfigError(
                f"cannot write into the output directory {self.path}: {error.strerror or error}. "
                "Take another --output_dir."
            ) from error

    def begin(self, recipe: dict[str, Any], command: str, *, overwrite: bool) -> None:
        """Create the folder and its record, or keep the record of the run that goes on."""
        if self.begun and (overwrite or self.being_emptied):
            self._empty()
        if not self.begun:
            self.path.mkdir(parents=True, exist_ok=True)
            self.note(recipe=recipe, command=command)

    def _empty(self) -> None:
        # Killed in here, the record still says what was going on, so that no later start takes the
        # rest for a run to go on with.
        self.note(being_emptied=True)
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != RECORD_NAME:
                entry.unlink()
        self.record = {}

    def note(self, **entries: Any) -> None:
        """Add entries to the record and write it."""
        self.record.update(entries)
        with whole_file(self.path / RECORD_NAME) as unfinished:
            unfinished.write_text(json.dumps(self.record, indent=2) + "\n", "utf-8")


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and ".unfinished" in path.name


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; put it in place of `path` when the block ends without an error."""
    unfinished = path.with_name(f".{path.name}.unfinished{path.suffix}")
    yield unfinished
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: `path` appears complete or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(path, ignore_errors=True)
    os.replace(unfinished, path)
