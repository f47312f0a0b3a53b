"""The telemetry measures the steps that are logged, and no others, in any Trainer."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_relopt import ConfigError, FormatError, RelOptCallback, RelOptTrainer
from hf_relopt.hf.callbacks import unwrapped
from tests.hf.tiny import FIGURES, arguments, gpt2, rows


class Measured(TrainerCallback):
    """The steps that were measured, seen from outside."""

    def __init__(self):
        self.steps = []

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if unwrapped(optimizer)._measurement is not None:
            self.steps.append(state.global_step + 1)


class Reporter(TrainerCallback):
    """Stands where TensorBoard's and others' stand: before the callbacks of the user."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def lines(folder):
    text = (folder / "telemetry.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def steps(folder):
    return [(line["kind"], line["step"]) for line in lines(folder)]


@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ({"logging_steps": 3}, [3, 6]),
        ({"logging_steps": 4, "logging_first_step": True}, [1, 4]),
        ({"logging_steps": 0.5}, [3, 6]),
        ({"logging_steps": 2, "gradient_accumulation_steps": 3}, [2, 4, 6]),
        ({"logging_strategy": "no"}, []),
        # 32 rows in batches of 4: epochs of 8 steps; the last one may be cut short.
        ({"logging_strategy": "epoch", "max_steps": 16}, [8, 16]),
        ({"logging_strategy": "epoch", "max_steps": 11}, [8, 11]),
        ({"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1.5}, [8, 12]),
        (
            {"logging_strategy": "epoch", "max_steps": 5, "gradient_accumulation_steps": 3},
            [3, 5],
        ),
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
    if logged:
        assert steps(tmp_path) == [("run", 0), *(("step", step) for step in logged)]
    else:
        assert not (tmp_path / "telemetry.jsonl").exists()


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __iter__(self):
        return iter(rows(12))


def test_of_epochs_of_unknown_length_the_last_step_is_measured(tmp_path):
    args = arguments(tmp_path, optim="fromage", logging_strategy="epoch", max_steps=5)
    measured = Measured()
    RelOptTrainer(gpt2(), args, train_dataset=Stream(), callbacks=[measured]).train()
    assert measured.steps == [5] and steps(tmp_path) == [("run", 0), ("step", 5)]


@pytest.mark.parametrize("optim", ["fromage", "fromage_spectral", "madam"])
def test_a_stock_trainer_logs_all_and_its_weights_are_as_they_were(optim, tmp_path):
    """One line adds it; what reports logs got its place before it; no step changes by one bit."""
    ends = []
    for callbacks in ([], [RelOptCallback()]):
        model, reporter = gpt2(), Reporter()
        args = arguments(tmp_path, optim=optim, logging_steps=1)
        job = Trainer(model, args, train_dataset=rows(), callbacks=[reporter, *callbacks])
        job.train()
        ends.append([param.detach() for param in model.parameters()])
        for log in (reporter.seen[:4], job.state.log_history[:4]):
            assert all((set(entry) >= FIGURES) == bool(callbacks) for entry in log)
    assert all(map(torch.equal, *ends))
    entry, line = job.state.log_history[1], lines(tmp_path)[2]
    assert line["loss"] == pytest.approx(entry["loss"], rel=1e-5)
    assert line["lr"] == pytest.approx(entry["learning_rate"], rel=1e-5)
    assert set(line["metrics"]) <= set(entry) and "step_drt" in entry
    assert lines(tmp_path)[0]["optimizer"] == optim
    assert [layer["name"] for layer in lines(tmp_path)[0]["layers"]] == [
        name for name, _ in model.named_parameters()
    ]


def test_tensorboard_shows_the_metrics(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    args = arguments(tmp_path, optim="fromage", report_to="tensorboard", logging_steps=2)
    Trainer(gpt2(), args, train_dataset=rows(), callbacks=[RelOptCallback()]).train()
    (file,) = tmp_path.rglob("events.out*")
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    points = events.Scalars("train/relative_update/matrix")
    assert [point.step for point in points] == [2, 4]
    assert points[0].value == pytest.approx(lines(tmp_path)[1]["metrics"]["relative_update/matrix"])


def test_attach_takes_the_place_of_the_one_that_is_there(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    job = RelOptTrainer(gpt2(), args, train_dataset=rows())
    callback = RelOptCallback(snapshots="memory").attach(job)
    mine = [each for each in job.callback_handler.callbacks if isinstance(each, RelOptCallback)]
    assert mine == [callback] == job.callback_handler.callbacks[:1]
    job.train()
    assert job.state.log_history[0]["drt_since_start"] > 0


@pytest.mark.parametrize("way", ["callbacks", "add_callback"])
def test_one_that_is_asked_for_measures_in_place_of_the_default(way, tmp_path):
    args = arguments(tmp_path, optim="fromage", logging_steps=2)
    callback = RelOptCallback(snapshots="memory", snapshot_dtype="float32", file="mine.jsonl")
    job = RelOptTrainer(
        gpt2(), args, train_dataset=rows(), callbacks=[callback] * (way == "callbacks")
    )
    if way == "add_callback":
        job.add_callback(callback)
    job.train()
    assert 0 < job.state.log_history[1]["changed_since_snapshot"] <= 1
    assert (tmp_path / "mine.jsonl").exists() and not (tmp_path / "telemetry.jsonl").exists()
    job.train()
    assert "drt_since_start" in job.state.log_history[-2]


def test_without_it_nothing_is_measured(tmp_path):
    measured = Measured()
    args = arguments(tmp_path, optim="fromage", logging_steps=1)
    job = RelOptTrainer(gpt2(), args, train_dataset=rows(), callbacks=[measured])
    job.remove_callback(RelOptCallback)
    job.train()
    assert measured.steps == [] and "relative_update" not in job.state.log_history[0]


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    given = {"optim": "fromage", "logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
    RelOptTrainer(gpt2(), arguments(tmp_path, **given), train_dataset=rows()).train()
    first = lines(tmp_path)
    again = RelOptTrainer(gpt2(), arguments(tmp_path, **given), train_dataset=rows())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = [("run", 0), *(("step", step) for step in (1, 2, 3, 4))]
    assert steps(tmp_path) == [*expected, ("run", 2), ("step", 3), ("step", 4)]
    for old, new in zip(first[3:], lines(tmp_path)[-2:], strict=True):
        assert new["relative_update"] == old["relative_update"]  # bit-equal steps
    logged = [entry["step"] for entry in again.state.log_history if "relative_update" in entry]
    assert logged == [1, 2, 3, 4]


def test_the_start_on_disk_is_what_a_resumed_run_measures_from(tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path / "start")
    given = {"optim": "fromage", "logging_steps": 2, "save_strategy": "steps", "save_steps": 2}
    ends = []
    for resume in (None, str(tmp_path / "run" / "checkpoint-2")):
        callback = RelOptCallback(initial=tmp_path / "start")
        args = arguments(tmp_path / "run", **given)
        job = RelOptTrainer(gpt2(), args, train_dataset=rows(), callbacks=[callback])
        job.train(resume_from_checkpoint=resume)
        ends.append(job.state.log_history[-2]["drt_since_start"])
    assert ends[0] == ends[1] > 0


def test_mistakes_are_said_before_training(tmp_path):
    with pytest.raises(ConfigError, match="snapshot_dtype is 'int8'"):
        RelOptCallback(snapshots="memory", snapshot_dtype="int8")
    args = arguments(tmp_path, optim="fromage")
    callback = RelOptCallback(initial=tmp_path / "none")
    job = RelOptTrainer(gpt2(), args, train_dataset=rows(), callbacks=[callback])
    with pytest.raises(FormatError, match="does not exist"):
        job.train()
    assert job.state.global_step == 0


def test_a_stall_is_warned_of_once(tmp_path, said):
    args = arguments(
        tmp_path, optim="fromage", logging_steps=1, learning_rate=0.001,
        optim_args="rounding=nearest", lr_scheduler_type="constant",
    )  # fmt: skip
    model = gpt2().to(torch.bfloat16)
    Trainer(model, args, train_dataset=rows(), callbacks=[RelOptCallback()]).train()
    (told,) = said.about("below bfloat16's resolution")
    assert "use stochastic rounding or lr >= 0.002" in told
    written = [line["text"] for line in lines(tmp_path) if line["kind"] == "warning"]
    assert written == [told]


@pytest.mark.parametrize("cls", [Trainer, RelOptTrainer])
def test_other_optimizers_are_left_alone(cls, tmp_path, said):
    args = arguments(tmp_path, optim="adamw_torch", logging_steps=1)
    callbacks = [RelOptCallback()] if cls is Trainer else []
    job = cls(gpt2(), args, train_dataset=rows(), callbacks=callbacks)
    job.train()
    assert not (tmp_path / "telemetry.jsonl").exists()
    assert not any(FIGURES & set(entry) for entry in job.state.log_history)
    # Who has asked for it hears why there is none.
    assert len(said.about("AdamW is no optimizer of hf_relopt")) == len(callbacks)
