"""How a recipe ends: one line and an exit code, unless it is a bug, which keeps its stack trace.

A mistake of the user, Ctrl-C, SIGTERM, a full disk.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from first_look import TRACKERS

from hf_relopt.errors import ConfigError, RelOptError

USAGE, FAILED = 2, 1
# What another rank waits for its launcher to end it, before it speaks for itself.
PATIENCE = 5.0  # seconds
# A terminal and a launcher may both pass the same Ctrl-C on.
SAME_SIGNAL = 2.0  # seconds

# Errors of the file system that a person can mend; others keep their stack trace.
_MENDABLE = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space of your quota",
    errno.EFBIG: "Raise the limit for the size of files (`ulimit -f`), or use another file system",
    errno.EROFS: "Use another --output_dir: this file system is read-only",
    errno.EACCES: "Give yourself the permission, or use another --output_dir",
    errno.EPERM: "Give yourself the permission, or use another --output_dir",
    errno.ENAMETOOLONG: "Use a shorter --run_name or --output_dir",
    errno.EIO: "Check the disk",
    errno.ENOTDIR: "Move the file away, or use another --output_dir",
    errno.EISDIR: "Move the folder away, or use another --output_dir",
    errno.EEXIST: "Move it away, or use another --output_dir",
    errno.ELOOP: "Fix the links, or use another --output_dir",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`)",
    errno.ESTALE: "Check the network file system",
}
# How libraries that are not written in Python say it.
_SAID = {
    "no space left on device": errno.ENOSPC,
    "file too large": errno.EFBIG,
    "disk quota exceeded": errno.EDQUOT,
    "read-only file system": errno.EROFS,
    "permission denied": errno.EACCES,
}
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed", "file write failed", "unexpected pos")
_HARDLY_ANYTHING = 1 << 20  # bytes


class Stopped(BaseException):
    """A signal asked this process to end; not an Exception, so that nobody takes it for an error.

    Attributes:
        number: the signal's.
        standing: how far the run has come, in words, if it is known.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.standing = "stopped before the training began; the same command starts it"

    @property
    def code(self) -> int:
        """The shell's exit code for a process that this signal has ended."""
        return 128 + self.number


class Signals:
    """Turns SIGINT and SIGTERM into Stopped, as long as it is in force.

    Before the training begins a signal ends the process at once: an exception in the middle of an
    import may be taken for another one. A second signal ends it at once, too.
    """

    def __init__(self) -> None:
        self.at_once = True
        self.came: float | None = None
        self._process = os.getpid()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen, in the main thread; a signal that is ignored (by nohup, say) stays ignored."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if threading.current_thread() is not threading.main_thread():
            numbers = []
        numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield
        finally:
            # A process that was told to end ends: what comes now is the same signal once more.
            for number, handler in before.items() if self.came is None else ():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker has our handler: it is ended as if it had not.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        stopped, now = Stopped(number), time.monotonic()
        if self.came is not None:
            if now - self.came > SAME_SIGNAL:
                leave_at_once(stopped.code)
            return
        self.came = now
        if self.at_once:
            say_stopped(stopped)
            leave_at_once(stopped.code)
        raise stopped


class Outcome:
    """What is known of the run when it ends.

    Attributes:
        run: has a folder and says where it stands; None before the folder is ours.
        signals: those that this process listens to.
    """

    def __init__(self) -> None:
        self.run: Any = None
        self.signals = Signals()

    @property
    def folder(self) -> Path | None:
        """Where the run writes."""
        return None if self.run is None else self.run.folder.path

    @property
    def standing(self) -> str:
        """How far the run has come, if it has begun."""
        return "" if self.run is None else f" It failed {self.run.standing()}."


@contextmanager
def one_clear_message() -> Iterator[Outcome]:
    """Around a recipe's main: one line for a mistake, a signal or a full disk.

    Raises:
        SystemExit: 2 for a mistake, 1 for the disk, 130 and 143 for Ctrl-C and SIGTERM.
    """
    outcome = Outcome()
    try:
        with outcome.signals.heard():
            yield outcome
    except Stopped as stopped:
        say_stopped(stopped)
        if not _has_more_to_do():
            leave_at_once(stopped.code)  # the interpreter's own end takes seconds
        _end(stopped.code)
    except RelOptError as error:
        say_error(f"error: {error}")
        _end(USAGE)
    except Exception as error:
        line = mendable(error, outcome.folder)
        if line is None:
            if is_one_of_several():
                wait_to_be_ended()  # it may fail only because another rank has left
            raise
        say_error(f"error: {line}.{outcome.standing}")
        _end(FAILED)


def _has_more_to_do() -> bool:
    """Whether workers have to be ended, or a tracker tells its server that the run is over."""
    return bool(multiprocessing.active_children()) or any(
        package in sys.modules for package in TRACKERS.values() if package != "tensorboard"
    )


def _end(code: int) -> None:
    if is_one_of_several():
        # The group's threads would keep the interpreter from its end.
        leave_at_once(code)
    raise SystemExit(code) from None


@contextmanager
def blamed_on(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises about a user's input into a ConfigError.

    Args:
        what: what was being done, as in "cannot load the model gpt3".
        remedy: what the user can do about it.
    """
    try:
        yield
    except (RelOptError, MemoryError):
        raise
    except Exception as error:
        if is_full_disk(error):  # no fault of what was read
            raise
        raise ConfigError(f"{what}: {reason(error)}. {remedy}") from error


def reason(error: BaseException) -> str:
    """The first line of an error that says something: of its cause, where it only names that."""
    cause: Any = error
    while _says_nothing(cause) and (cause.__cause__ or cause.__context__):
        cause = cause.__cause__ or cause.__context__
    line = next((line for line in str(cause).splitlines() if line.strip()), "").strip()
    return (line or type(cause).__name__).rstrip(".")


def _says_nothing(error: BaseException) -> bool:
    # datasets wraps what went wrong in a file into this.
    return "error occurred while generating the dataset" in str(error) or not str(error).strip()


def mendable(error: BaseException, folder: Path | None) -> str | None:
    """One sentence about an error of the file system and its remedy; None for all other errors.

    Args:
        error: with what caused it.
        folder: where this run writes.
    """
    seen: set[int] = set()
    causes: list[BaseException | None] = [error]
    while causes:
        cause = causes.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        if found := _one_mendable(cause, folder):
            return found
        causes += [cause.__context__, cause.__cause__]
    return None


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that no more can be written."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    return isinstance(error, OSError) and error.errno in full


def _one_mendable(error: BaseException, folder: Path | None) -> str | None:
    text, where = str(error), str(folder or "the disk")
    if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)):
        if error.errno in _MENDABLE:
            return _sentence(str(error.filename or where), error.errno)
        if error.errno == errno.ENOENT and folder and str(error.filename).startswith(str(folder)):
            return f"{error.filename} was removed while the run was writing there"
    for words, number in _SAID.items():
        if words in text.lower():
            return _sentence(where, number)
    if any(words in text for words in _TORCH_CANNOT_WRITE):
        number = errno.ENOSPC if _is_full(folder) else errno.EFBIG
        return _sentence(where, number) if folder else None
    return None


def _sentence(where: str, number: int) -> str:
    return f"cannot read or write {where}: {os.strerror(number)}. {_MENDABLE[number]}"


def _is_full(folder: Path | None) -> bool:
    try:
        space = os.statvfs(folder or ".")
    except (OSError, AttributeError):  # gone, or Windows
        return True
    return space.f_bavail * space.f_frsize < _HARDLY_ANYTHING


def say_error(line: str) -> None:
    """Print a line with the script's name on stderr; one process of several speaks for all.

    The others have the same mistake, or fail since the first has left: they wait until the launcher
    ends them, and speak for themselves if it does not.
    """
    if (rank := os.environ.get("RANK", "0")) != "0":
        wait_to_be_ended()
        line = f"rank {rank}: {line}"
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr, flush=True)


def say_stopped(stopped: Stopped) -> None:
    """Say how far the run has come; the main process alone, since all are told to stop."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{Path(sys.argv[0]).name}: {stopped.standing}", file=sys.stderr, flush=True)


def wait_to_be_ended() -> None:
    """Give the launcher time to end this process, without a word about the signal."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
    time.sleep(PATIENCE)


def is_one_of_several() -> bool:
    """Whether a launcher started this process beside others."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def leave_at_once(code: int) -> None:
    """End the process without the interpreter's own end, which may wait for threads forever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
