"""What the package says is caught here: its own logger does not pass records on."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from hf_relopt.hf import log
from hf_relopt.optim import learning_rates


class Said(logging.Handler):
    """Every message of hf_relopt, and the levels they came with."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.levels: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.levels.append(record.levelname)

    def about(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]


@pytest.fixture
def said() -> Iterator[Said]:
    handler = Said()
    # What an earlier test heard is news here.
    log._said.clear()
    learning_rates.warn_once.cache_clear()
    logger = logging.getLogger("hf_relopt")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
