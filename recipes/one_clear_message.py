"""A problem that the user can fix ends a recipe with one line and an exit code."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stopping import (
    Signals,
    Stopped,
    is_full_disk,
    is_one_of_several,
    leave_at_once,
    mendable,
    say_error,
    say_stopped,
    wait_to_be_ended,
)
from trackers import TRACKERS

from hf_relopt.errors import ConfigError, RelOptError

USAGE, FAILED = 2, 1


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
