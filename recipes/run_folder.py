"""The folder of one run: its settings, its progress, whether it is finished.

`run.json` is the record. It is replaced atomically, so a process that is killed while writing
leaves the old one. "finished" is its last entry to be written: until then a new start resumes from
the last complete checkpoint, after that a new start changes nothing.

One process per folder: a second start waits until the first has ended. A launcher that is killed
can leave its worker training.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_files import system_words

from hf_relopt.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

RECORD_NAME = "run.json"
# Learning rates that records of before hold where none was given: the Trainer's and TRL's default.
NOT_GIVEN = (5e-05, 2e-05)


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
        place = self.path / RECORD_NAME
        try:
            record = json.loads(place.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                return {}  # what is wrong is the folder's name, see check_place
            raise ConfigError(
                f"cannot read {place}: {system_words(error)}. Fix that, or use another "
                "--output_dir."
            ) from error
        except (ValueError, RecursionError) as error:
            if "\0" in str(place):
                return {}
            raise _damaged(
                place, f"it is not JSON ({' '.join(str(error).split())[:80]})"
            ) from error
        if fault := record_fault(record):
            raise _damaged(place, fault)
        return record

    def check_place(self) -> None:
        """Refuse, before anything is written, a folder in which no run can be written.

        Raises:
            ConfigError: not writable, a file, a link to nowhere, or full of other files.
        """
        try:
            self._try_to_write()
            strange = not self.begun and self.path.is_dir() and self._holds_files()
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot write into the output directory {shortened(self.path)}: "
                f"{system_words(error)}. Use "
                "another --output_dir (or --run_name)."
            ) from error
        if strange:
            raise ConfigError(
                f"{self.path} holds files but no {RECORD_NAME}, so no recipe wrote them. Use "
                "another --output_dir (or --run_name), or empty the folder."
            )

    def _holds_files(self) -> bool:
        return any(not _is_unfinished(path) for path in self.path.iterdir())

    def _try_to_write(self) -> None:
        there = self.path
        while not _is_there(there) and there != there.parent:
            there = there.parent
        if there.is_symlink() and not there.exists():
            raise ConfigError(
                f"cannot write into the output directory {self.path}: {there} is a link to "
                f"{os.readlink(there)}, which does not exist. Make that folder, remove the link, "
                "or use another --output_dir."
            )
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is a file")
        for name in self.path.parts[len(there.parts) :]:
            _is_there(there / name)  # raises what the file system says of such a name
        with tempfile.TemporaryFile(dir=there):
            pass

    def check(self, recipe: dict[str, Any], *, overwrite: bool) -> None:
        """Refuse, before anything is written, a folder this run must not or cannot write into.

        Args:
            recipe: the settings that make this run the run it is.
            overwrite: whether to delete the run in the folder.

        Raises:
            ConfigError: folder not writable, full of other files, or of a run with other settings.
        """
        self.check_place()
        if self.begun and not overwrite and not self.being_emptied:
            self._check_same(recipe)

    def _check_same(self, recipe: dict[str, Any]) -> None:
        before = self.record.get("recipe", {})
        now = json.loads(json.dumps(recipe))
        changed = [
            f"{name} was {_shown(before.get(name))}, now {_shown(now.get(name))}"
            for name in sorted({*before, *now})
            if not _same(name, before.get(name), now.get(name))
        ]
        if changed:
            raise ConfigError(
                f"{self.path} holds a run with other settings: {'; '.join(changed)}. Use the same "
                "settings to resume it, another --run_name for a new run, or "
                "--overwrite_output_dir to delete it and start over."
            )

    def begin(self, recipe: dict[str, Any], command: str, *, overwrite: bool) -> None:
        """Create the folder and its record, or keep the record of the run that is resumed."""
        if self.begun and (overwrite or self.being_emptied):
            self._empty()
        if not self.begun:
            self.path.mkdir(parents=True, exist_ok=True)
            self.note(recipe=recipe, command=command)

    def _empty(self) -> None:
        # Killed in here, the record still says what was being done, so that no later start takes
        # the rest for a run to resume.
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


def record_fault(record: object) -> str | None:
    """What is wrong with a run.json's content; None if a run can be resumed or shown from it."""
    if not isinstance(record, dict):
        kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
        return f"it holds {kinds.get(type(record), 'a number')}, and no entries"
    if not isinstance(record.get("recipe"), dict):
        return "it has no entry 'recipe' with the settings of a run"
    if not record.get("finished") or record.get("being_emptied"):
        return None
    for name, kind in (("before", dict), ("after", dict), ("steps", int), ("seconds", float)):
        value = record.get(name)
        if kind is float and isinstance(value, int):
            value = float(value) if abs(value) < 1 << 53 else None
        right = isinstance(value, kind) and not isinstance(value, bool)
        if not right or (kind is float and not math.isfinite(value)):
            return f"its entry {name!r} has a wrong type"
    hints = record.get("hints", [])
    pairs = isinstance(hints, list) and all(isinstance(h, list) and len(h) == 2 for h in hints)
    return None if pairs else "its entry 'hints' holds no pairs"


def _damaged(place: Path, fault: str) -> ConfigError:
    return ConfigError(
        f"{place} is damaged: {fault}. Restore it, use another --output_dir (or --run_name), or "
        "remove the folder if you do not need it."
    )


def _same(name: str, before: Any, now: Any) -> bool:
    return before == now or (name == "learning_rate" and now is None and before in NOT_GIVEN)


def _shown(value: Any) -> str:
    return "not given" if value is None else repr(value)


def shortened(path: Path) -> str:
    """A path for a message: its middle left out if it is very long."""
    text = str(path)
    return text if len(text) <= 120 else f"{text[:60]}...{text[-40:]}"


def _is_there(path: Path) -> bool:
    """Whether a path exists, a link to nowhere among others; errors other than that are raised."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


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


class FolderLock:
    """A lock on a directory itself; it leaves no file behind.

    The operating system drops it when the process that holds it ends, however it ends.
    """

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
