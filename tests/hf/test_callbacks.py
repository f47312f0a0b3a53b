"""The telemetry measures the steps that are logged, and no others."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_relopt import Fromage, RelOptTrainer
from hf_relopt.hf.callbacks import TelemetryCallback, unwrapped
from tests.hf.tiny import arguments, gpt2, rows


class Measured(TrainerCallback):
    """The steps that were measured, seen from outside."""

    def __init__(self):
        self.steps = []

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if unwrapped(optimizer)._measurement is not None:
            self.steps.append(state.global_step + 1)


@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ({"logging_steps": 3}, [3, 6]),
        ({"logging_steps": 4, "logging_first_step": True}, [1, 4]),
        ({"logging_steps": 0.5}, [3, 6]),
        ({"logging_strategy": "no"}, []),
        # 32 rows in batches of 4: epochs of 8 steps.
        ({"logging_strategy": "epoch", "max_steps": 16}, [8, 16]),
    ],
)
def test_measured_steps_are_the_logged_ones(given, logged, tmp_path):
    args = arguments(tmp_path, optim="fromage", **{"max_steps": 6, **given})
    measured = Measured()
    job = RelOptTrainer(gpt2(), args, train_dataset=rows(), callbacks=[measured])
    job.train()
    with_figures = [e["step"] for e in job.state.log_history if "relative_update" in e]
    assert with_figures == logged
    assert measured.steps == logged


def test_the_callback_alone_leaves_a_stock_trainer_s_weights_as_they_are(tmp_path):
    """Measuring must not change a step by one bit."""
    ends = []
    for callbacks in ([], [TelemetryCallback()]):
        model = gpt2()
        args = arguments(tmp_path, optim="madam", logging_steps=1)
        Trainer(model, args, train_dataset=rows(), callbacks=callbacks).train()
        ends.append([param.detach() for param in model.parameters()])
    assert all(map(torch.equal, *ends))


def test_other_optimizers_have_no_figures(tmp_path):
    args = arguments(tmp_path, optim="adamw_torch", logging_steps=1)
    callback = TelemetryCallback()
    Trainer(gpt2(), args, train_dataset=rows(), callbacks=[callback]).train()
    assert callback.figures() == {}


def test_unwrapped_finds_ours_and_only_ours():
    weight = torch.nn.Parameter(torch.ones(2))
    ours = Fromage([weight])

    class Wrapper:
        optimizer = ours

    assert unwrapped(ours) is ours
    assert unwrapped(Wrapper()) is ours
    assert unwrapped(torch.optim.SGD([weight])) is None
    assert unwrapped(None) is None
