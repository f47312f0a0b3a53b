"""relopt_run.json: begun before the first step, completed at the end, and never in the way."""

from __future__ import annotations

import json
import os

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import HPSearchBackend

from hf_relopt import RelOptTrainer
from hf_relopt.hf.run_record import RECORD, RunRecord, read_or_none, write
from tests.distributed.ranks import forked
from tests.hf.tiny import arguments, gpt2, rows


def read(folder):
    return json.loads((folder / RECORD).read_text())


class StopsAt(TrainerCallback):
    """Ends a training at a step, as an error or a kill does; keeps what the record said then."""

    def __init__(self, step, folder):
        self.step, self.folder, self.seen = step, folder, None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.seen = read(self.folder)
            raise KeyboardInterrupt


def test_the_record_has_the_form_that_readers_expect(told_run):
    record = read(told_run)
    assert record["format"] == 1 and record["finished"] is True and record["seconds"] > 0
    assert record["model"]["class"] == "GPT2LMHeadModel" and record["model"]["dtype"] == "float32"
    assert record["model"]["parameters"] == record["model"]["trainable"] > 0
    assert record["optimizer"]["name"] == "fromage"
    groups = record["optimizer"]["groups"]
    assert sum(group["parameters"] for group in groups) == record["model"]["parameters"]
    assert {"role", "follows", "lr", "tensors", "parameters"} <= set(groups[0])
    training = record["training"]
    assert (training["peak_lr"], training["steps"], training["max_steps"]) == (0.01, 4, 4)
    assert training["seed"] == 1 and training["sequences_per_step"] == 4
    assert record["launch"] == {"mode": "single process", "processes": 1, "backend": None}
    assert record["hardware"]["device"] == "CPU" and record["versions"]["torch"]
    assert record["base_model"].endswith("base") and record["base_is_local"] is True
    assert [each["step"] for each in record["evaluations"]] == [2, 4]
    assert record["command"] and record["started"].endswith("+00:00")


def test_a_run_that_is_interrupted_has_an_unfinished_record_and_resuming_goes_on(tmp_path):
    stop = StopsAt(3, tmp_path)
    given = {"optim": "madam", "save_strategy": "steps", "save_steps": 2}
    trainer = RelOptTrainer(
        gpt2(), arguments(tmp_path, **given), train_dataset=rows(), callbacks=[stop]
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    before = read(tmp_path)
    assert stop.seen["finished"] is False and before["finished"] is False
    assert before["training"]["steps"] == 2  # of the last checkpoint
    assert not (tmp_path / "README.md").exists()
    write({**before, "started": "2020-01-01T00:00:00+00:00", "seconds": 1000.0}, tmp_path)
    again = RelOptTrainer(gpt2(), arguments(tmp_path, **given), train_dataset=rows())
    again.train(resume_from_checkpoint=True)
    after = read(tmp_path)
    assert after["started"] == "2020-01-01T00:00:00+00:00" and after["finished"] is True
    assert 1000 < after["seconds"] < 1500 and after["training"]["steps"] == 4


def test_a_new_run_in_the_folder_begins_a_new_record(told):
    write({**read(told), "started": "2020-01-01T00:00:00+00:00", "seconds": 1000.0}, told)
    RelOptTrainer(gpt2(), arguments(told, optim="fromage"), train_dataset=rows()).train()
    record = read(told)
    assert not record["started"].startswith("2020") and record["seconds"] < 1000
    assert record["base_model"] is None and record["training"]["max_steps"] == 4


def test_resuming_in_another_folder_takes_the_record_beside_the_checkpoint(told_run, tmp_path):
    trainer = RelOptTrainer(
        gpt2(),
        arguments(tmp_path, optim="fromage", max_steps=5, learning_rate=0.01),
        train_dataset=rows(),
    )
    trainer.train(str(told_run / "checkpoint-4"))
    assert read(tmp_path)["base_model"] == read(told_run)["base_model"]
    assert read(tmp_path)["started"] == read(told_run)["started"]


def test_an_evaluation_after_training_is_kept(told_run, tmp_path):
    trainer = RelOptTrainer(
        gpt2(), arguments(tmp_path, optim="fromage"), train_dataset=rows(), eval_dataset=rows(8)
    )
    trainer.train()
    assert "evaluations" not in read(tmp_path)
    measured = trainer.evaluate()
    trainer.evaluate(metric_key_prefix="test")
    (kept,) = read(tmp_path)["evaluations"]
    assert kept["step"] == 4 and kept["metrics"]["eval_loss"] == measured["eval_loss"]


def test_a_stock_trainer_has_one_by_one_line(tmp_path):
    args = arguments(tmp_path, optim="madam")
    Trainer(gpt2(), args, train_dataset=rows(), callbacks=[RunRecord()]).train()
    record = read(tmp_path)
    assert record["finished"] and record["optimizer"]["name"] == "madam"
    assert record["base_model"] is None


def test_a_record_that_cannot_be_written_stops_no_training(tmp_path, said):
    (tmp_path / RECORD).mkdir()  # in its place
    trainer = RelOptTrainer(gpt2(), arguments(tmp_path, optim="fromage"), train_dataset=rows())
    trainer.train()
    assert trainer.state.global_step == 4
    assert said.about("the run's record, relopt_run.json, cannot be written")


def test_a_damaged_record_is_none(tmp_path):
    assert read_or_none(tmp_path) is None
    for text in ('{"format": 1, "opt', "[1]", ""):
        (tmp_path / RECORD).write_text(text)
        assert read_or_none(tmp_path) is None


def test_what_is_written_is_json_whatever_it_holds(tmp_path):
    odd = {"a": float("nan"), "b": (1, torch.tensor(2.0)), "c": torch.float16, "d": {1: "x"}}
    assert json.loads(write(odd, tmp_path).read_text(), parse_constant=pytest.fail) == {
        "a": None,
        "b": [1, 2.0],
        "c": "torch.float16",
        "d": {"1": "x"},
    }
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


def test_trials_of_a_search_leave_no_record_and_no_card(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    trainer = RelOptTrainer(model_init=lambda: gpt2(), args=args, train_dataset=rows())
    trainer.hp_search_backend = HPSearchBackend.WANDB  # the one whose trial is a plain dict
    trainer._hp_search_setup({"learning_rate": 0.01})
    trainer.train()
    assert not (tmp_path / "README.md").exists()
    record = RunRecord()
    record.on_train_begin(args, TrainerState(trial_name="first"), None, model=gpt2())
    assert record.record is None


@pytest.mark.dist
def test_of_two_ranks_one_writes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from hf_relopt import RelOptTrainer\n"
        "from tests.hf.tiny import arguments, gpt2, rows\n"
        f"args = arguments({str(tmp_path / 'run')!r}, optim='fromage', ddp_backend='gloo')\n"
        "trainer = RelOptTrainer(gpt2(), args, train_dataset=rows())\n"
        "trainer.train()\n"
        "print(f'rank {args.process_index}: {trainer._record.record is not None}', flush=True)\n"
        "from tests.distributed.ranks import leave\nleave()\n"
    )
    done = forked(2, script, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 0: True" in done.stdout and "rank 1: False" in done.stdout, done.stdout
    record = read(tmp_path / "run")
    assert record["launch"] == {"mode": "DDP", "processes": 2, "backend": "gloo"}
    assert record["training"]["sequences_per_step"] == 8
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| launch mode | DDP, 2 processes, gloo |" in card
    assert "| sequences per step | 8 (4 per device, 2 processes) |" in card
    assert not [name for name in os.listdir(tmp_path / "run") if "unfinished" in name]
