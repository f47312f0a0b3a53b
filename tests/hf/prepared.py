"""Prepared checkpoints: what they would run, and what refuses them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from hf_relopt import FormatError, RelOptTrainer
from hf_relopt.hf.checkpoints import find_fault, last_complete_checkpoint
from tests.hf.tiny import arguments, gpt2, rows


class Makes:
    """Pickled, it is a call that leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def prepared(path: Path) -> bytes:
    return pickle.dumps(Makes(path))


def as_global(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls module.name(argument)."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def assert_refused(checkpoint: Path, trap: Path, *words: str) -> None:
    """Every way that looks at the checkpoint ends in words, and none springs the trap."""
    fault = find_fault(checkpoint)
    assert fault is not None and "\n" not in fault
    for word in words:
        assert word in fault
    assert last_complete_checkpoint(checkpoint.parent) is None
    job = RelOptTrainer(
        gpt2(), arguments(checkpoint.parent / "out", optim="fromage"), train_dataset=rows()
    )
    with pytest.raises(FormatError, match="not a complete checkpoint"):
        job.train(str(checkpoint))
    assert not trap.exists()
