"""What the package says is caught here: its own logger does not pass records on."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from transformers import GPT2LMHeadModel, Trainer

from hf_relopt import Madam, RelOptTrainer
from hf_relopt.hf import log
from hf_relopt.plans import defaults
from tests.hf.tiny import arguments, gpt2, pretrained, rows


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
    defaults.warn_once.cache_clear()
    logger = logging.getLogger("hf_relopt")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run's checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    args = arguments(folder, optim="fromage", save_strategy="steps", save_steps=2)
    Trainer(gpt2(), args, train_dataset=rows()).train()
    return folder


@pytest.fixture
def run(plain_run: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return Path(shutil.copytree(plain_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def sharded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose optimizer was saved in shards as Accelerate saves it under FSDP2."""
    folder = tmp_path_factory.mktemp("sharded")
    args = arguments(folder, optim="fromage", save_strategy="steps", save_steps=2, max_steps=2)
    Trainer(gpt2(), args, train_dataset=rows()).train()
    weight = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = Madam([("weight", weight)])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = {"optimizer": {**optimizer.state_dict(), "word": "value"}}
    with warnings.catch_warnings():
        # torch says that it saves from a single process.
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
        dcp.save(state, checkpoint_id=folder / "checkpoint-2" / "optimizer_0")
    return folder


@pytest.fixture
def checkpoint(sharded_run: Path, tmp_path: Path) -> Path:
    """A copy of it, to be prepared."""
    return Path(shutil.copytree(sharded_run, tmp_path / "run")) / "checkpoint-2"


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder that is there once a prepared file has run."""
    return tmp_path / "trap"


@pytest.fixture(scope="session")
def told_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of RelOptTrainer, from a model in the folder beside it, with its card."""
    folder = tmp_path_factory.mktemp("told")
    pretrained(gpt2()).save_pretrained(folder / "base")
    model = GPT2LMHeadModel.from_pretrained(folder / "base")
    model.loss_type = "ForCausalLM"
    args = arguments(
        folder / "run", optim="fromage", save_strategy="steps", save_steps=2, eval_strategy="steps",
        eval_steps=2, learning_rate=0.01,
    )  # fmt: skip
    trainer = RelOptTrainer(model, args, train_dataset=rows(), eval_dataset=rows(8))
    trainer.train()
    trainer.save_model()
    return folder / "run"


@pytest.fixture
def told(told_run: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged; the base model stays where it is."""
    return Path(shutil.copytree(told_run, tmp_path / "run"))
