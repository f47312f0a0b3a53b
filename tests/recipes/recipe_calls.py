"""How the tests call a recipe: with tiny settings, in this process or in others."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.distributed import ranks

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


def tiny_pretraining(text: Path, output: Path, **more: object) -> list[str]:
    """Arguments that train a GPT-2 of 6,000 parameters."""
    flags = {
        "train_file": text, "output_dir": output, "vocab_size": 270, "block_size": 16,
        "config_overrides": "n_layer=1,n_embd=16,n_head=2", "per_device_train_batch_size": 2,
        "max_eval_samples": 12, "max_steps": 2, "logging_steps": 1, "eval_steps": 2,
        "save_steps": 2, "use_cpu": True, **more,
    }  # fmt: skip
    return as_arguments(flags)


def tiny_finetuning(data: Path, model: Path, output: Path, **more: object) -> list[str]:
    """Arguments that fine-tune a tiny model."""
    flags = {
        "train_file": data, "model_name_or_path": model, "output_dir": output,
        "per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1,
        "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "validation_share": 0.25,
        "use_cpu": True, **more,
    }  # fmt: skip
    return as_arguments(flags)


def as_arguments(flags: Mapping[str, object]) -> list[str]:
    """A command line from names and values; None leaves a flag out."""
    pairs = ((f"--{name}", str(value)) for name, value in flags.items() if value is not None)
    return [word for pair in pairs for word in pair]


def as_if_stopped(folder: Path, unfinished: str) -> None:
    """Leave a finished run as it was while it wrote its last checkpoint."""
    record = json.loads((folder / "run.json").read_text())
    del record["finished"]
    (folder / "run.json").write_text(json.dumps(record))
    (folder / unfinished / "trainer_state.json").unlink()
    (folder / "model.safetensors").unlink()


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    """Write a table of JSON, one row a line."""
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def refusal(
    main: Callable[[list[str]], None], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> str:
    """The one line with which a recipe refuses a mistake."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert len(message.splitlines()) == 1 and ": error: " in message, message
    return message


class Background:
    """A recipe that runs in a process forked from one that has imported what it needs.

    Args:
        script: name of the script.
        arguments: its command line.
        folder: for what it says.
        largest_file: bytes that a file may have; 0: any.
    """

    def __init__(
        self, script: str, arguments: list[str], folder: Path, largest_file: int = 0
    ) -> None:
        self._out, self._errors = folder / "out", folder / "errors"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(ranks._IMPORTED_ONCE)
        words = (str(RECIPES / script), *arguments)
        parts = (largest_file, words, ranks.environment(), self._out, self._errors)
        self.process = context.Process(target=_run, args=parts)
        self.process.start()

    @property
    def out(self) -> str:
        """Its stdout so far."""
        return self._out.read_text() if self._out.exists() else ""

    @property
    def errors(self) -> str:
        """Its stderr so far."""
        return self._errors.read_text() if self._errors.exists() else ""

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for something that it does."""
        deadline = time.monotonic() + 240
        while not done():
            assert self.process.exitcode is None, self.out + self.errors
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self, number: int = 0) -> int | None:
        """Its exit code, after a signal if one is given."""
        if number and self.process.pid is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(self.process.pid, number)
        self.process.join(120)
        return self.process.exitcode


def _run(largest_file: int, *parts: object) -> None:
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    ranks._be_a_rank(*parts)
