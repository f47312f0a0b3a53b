"""The package's logger: shown by default, on the main process only."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger("hf_relopt")

_said: set[str] = set()


def say_once(level: int, message: str) -> None:
    """Log a message at ``level`` the first time in a process, and at debug level after that."""
    logger.log(logging.DEBUG if message in _said else level, "%s", message)
    _said.add(message)


def _is_main_process(_: logging.LogRecord) -> bool:
    return os.environ.get("RANK", "0") == "0"


def _configure() -> None:
    # As Transformers does: a handler of our own, so that a script that configures no logging still
    # shows the plan and the learning rate. A script that wants silence raises this logger's level.
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[hf_relopt] %(message)s"))
    handler.addFilter(_is_main_process)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


_configure()
