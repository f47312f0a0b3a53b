"""Runs that really trained, and a real browser, started once."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Trainer

from hf_relopt import RelOptTrainer
from tests.hf import tiny
from tests.report import written
from tests.report.browser import browser, found


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder of two runs: "relopt" by RelOptTrainer, "adamw" by a stock Trainer."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = (("relopt", RelOptTrainer, "fromage_spectral"), ("adamw", Trainer, "adamw_torch"))
    for name, trainer, optim in kinds:
        given = {"optim": optim, "max_steps": 12, "logging_steps": 1, "save_strategy": "steps"}
        given |= {"save_steps": 6, "eval_strategy": "steps", "eval_steps": 4}
        args = tiny.arguments(folder / name, **given)
        rows = tiny.rows()
        running = trainer(tiny.gpt2(), args, train_dataset=rows, eval_dataset=rows[:4])
        running.train()
        running.save_state()
    return folder


@pytest.fixture
def whole_run(tmp_path) -> Path:
    """A run with every file, of 60 steps that were logged every second step."""
    folder = tmp_path / "whole"
    lines = written.telemetry_of(60, written.gpt2_layers(), 2)
    lines.append(written.warning_line(40, "82 % of entries did not change in the last 50 steps."))
    written.write_telemetry(folder, lines)
    written.write_json(folder / "relopt_run.json", written.record())
    entries = [
        {"step": line["step"], "loss": line["loss"], "learning_rate": line["lr"], "grad_norm": 1.5}
        for line in lines
        if line["kind"] == "step"
    ]
    evals = [{"step": step, "eval_loss": 7 - step / 20, "eval_accuracy": step / 100,
              "eval_runtime": 0.1, "eval_tokens": 4064} for step in (0, 20, 40, 60)]  # fmt: skip
    log = sorted([*entries, *evals], key=lambda entry: entry["step"])
    written.write_json(folder / "trainer_state.json", written.trainer_state(log))
    return folder


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """The running browser."""
    if found() is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def tab(chromium):
    """A tab of its own."""
    return chromium.page()
