"""A recipe ends a user's mistake with one message and exit code 2, not with a stack trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_relopt.errors import ConfigError, RelOptError


@contextmanager
def one_clear_message() -> Iterator[None]:
    """Around a recipe's main: print a RelOptError as one message, then exit with code 2."""
    try:
        yield
    except RelOptError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


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
        reason = next((line for line in str(error).splitlines() if line.strip()), "").strip()
        reason = (reason or type(error).__name__).rstrip(".")
        raise ConfigError(f"{what}: {reason}. {remedy}") from error
