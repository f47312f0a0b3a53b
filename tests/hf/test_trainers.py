"""Trainers are remembered: what each one's model looked like, and what it resumes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Trainer

from hf_relopt import RelOptCallback, RelOptTrainer
from hf_relopt.cli import run
from hf_relopt.errors import FormatError
from hf_relopt.hf.trainers import TELEMETRY, handlers_with, trainer_of
from tests.hf.tiny import arguments, gpt2, pretrained, rows, same, weights


def test_two_trainers_made_before_either_has_an_optimizer(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    one = Trainer(gpt2(), args, train_dataset=rows())
    other = Trainer(pretrained(gpt2()), args, train_dataset=rows())
    for job, expected in ((one, 0.01), (other, 0.001), (one, 0.01)):
        job.optimizer = None
        job.create_optimizer()
        assert {group["lr"] for group in job.optimizer.param_groups} == {expected}
        assert args.learning_rate == expected


def test_making_an_optimizer_twice_for_one_model_is_making_the_same(tmp_path):
    """After the first training the model looks pretrained, but it is the same run's."""
    args = arguments(tmp_path, optim="fromage")
    job = Trainer(gpt2(), args, train_dataset=rows())
    job.train()
    job.optimizer = job.lr_scheduler = None
    job.create_optimizer()
    assert {group["lr"] for group in job.optimizer.param_groups} == {0.01}


@pytest.mark.parametrize(("value", "has_one"), [(None, False), ("0", False), ("1", True)])
def test_telemetry_is_added_where_the_variable_asks_for_it(value, has_one, tmp_path, monkeypatch):
    assert TELEMETRY == run.TELEMETRY
    monkeypatch.delenv(TELEMETRY, raising=False)
    if value is not None:
        monkeypatch.setenv(TELEMETRY, value)
    args = arguments(tmp_path, optim="fromage")
    for cls, expected in ((Trainer, int(has_one)), (RelOptTrainer, 1)):
        job = cls(gpt2(), args, train_dataset=rows())
        callbacks = job.callback_handler.callbacks
        found = [each for each in callbacks if isinstance(each, RelOptCallback)]
        assert len(found) == expected
        if found:
            assert handlers_with(found[0]) == [job.callback_handler]
    asked = Trainer(gpt2(), args, train_dataset=rows(), callbacks=[RelOptCallback()])
    mine = [c for c in asked.callback_handler.callbacks if isinstance(c, RelOptCallback)]
    assert len(mine) == 1


def test_who_asks_for_telemetry_of_another_optimizer_hears_that_there_is_none(
    tmp_path, monkeypatch, said
):
    monkeypatch.setenv(TELEMETRY, "1")
    args = arguments(tmp_path, optim="adamw_torch", max_steps=1)
    Trainer(gpt2(), args, train_dataset=rows()).train()
    assert said.about("AdamW is no optimizer of hf_relopt; not measured")


@pytest.fixture(scope="module")
def weights_alone(tmp_path_factory) -> Path:
    """A run from scratch whose checkpoints hold no optimizer state."""
    folder = tmp_path_factory.mktemp("weights_alone")
    saving = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    args = arguments(folder, optim="fromage_spectral", **saving)
    RelOptTrainer(gpt2(), args, train_dataset=rows()).train()
    return folder


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("trainer", [Trainer, RelOptTrainer])
def test_weights_alone_are_not_resumed_in_silence(trainer, named, weights_alone):
    args = arguments(weights_alone, optim="fromage_spectral", max_steps=6)
    job = trainer(gpt2(seed=1), args, train_dataset=rows())
    before = weights(job.model)
    folder = str(weights_alone / "checkpoint-4")
    with pytest.raises(FormatError, match=r"save_only_model.*discard_optimizer_state"):
        job.train(resume_from_checkpoint=folder if named else True)
    assert same(before, weights(job.model))


def test_weights_alone_go_on_at_their_place_when_told_so(weights_alone):
    args = arguments(weights_alone / "after", optim="fromage_spectral", max_steps=8)
    job = RelOptTrainer(gpt2(seed=1), args, train_dataset=rows())
    job.train(str(weights_alone / "checkpoint-4"), discard_optimizer_state=True)
    logged = [entry for entry in job.state.log_history if "learning_rate" in entry]
    found = {entry["step"]: entry["learning_rate"] for entry in logged if entry["step"] > 4}
    # The default of a model from scratch, although the weights that were loaded look trained.
    assert found == pytest.approx({step: 0.04 * (9 - step) / 8 for step in (6, 8)})


def test_a_trainer_is_found_by_its_model_or_where_it_is_the_only_one(tmp_path):
    args, other_args = arguments(tmp_path, optim="fromage"), arguments(tmp_path, optim="fromage")
    one = Trainer(gpt2(), args, train_dataset=rows())
    assert trainer_of(args, None) is one
    assert trainer_of(other_args, one.model) is None
    two = Trainer(gpt2(), args, train_dataset=rows())
    assert trainer_of(args, None) is None  # which of them asks cannot be told
    assert trainer_of(args, two.model) is two
    assert trainer_of(args, one.model.transformer) is one  # a part of its model
    assert trainer_of(args, torch.nn.Sequential(two.model)) is two  # a loss that holds it
    two.is_in_train = True
    assert trainer_of(args, None) is two
