"""Files of a checkpoint that can be read and hold the wrong thing."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
import torch
from transformers import Trainer

from hf_relopt.hf.checkpoints import find_fault
from tests.hf.damage import DEEP, changed, holding, saved
from tests.hf.tiny import arguments, gpt2, rows

CONTENT = [
    *[("trainer_state.json", changed(**fields)) for fields in (
        {"unknown_field": 1}, {"stateful_callbacks": [1]}, {"stateful_callbacks": "x"},
        {"stateful_callbacks": {"TrainerControl": 5}}, {"train_batch_size": "x"},
        {"stateful_callbacks": {"TrainerControl": {"args": 3}}}, {"train_batch_size": -1},
        {"save_steps": "x"}, {"logging_steps": []}, {"total_flos": "x"}, {"best_metric": "x"},
        {"best_model_checkpoint": 5}, {"global_step": 100}, {"global_step": 10**30},
        {"log_history": [{"step": "x", "loss": 1.0}]}, {"num_input_tokens_seen": "x"},
    )],
    ("trainer_state.json", lambda path: path.write_text(path.read_text(), encoding="utf-16")),
    *[("config.json", holding(text)) for text in ("garbage", "[]", "null", "", DEEP, "5")],
    *[(name, saved(content)) for content in (None, 5, [1], "x", torch.ones(2), {})
      for name in ("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth")],
    *[("optimizer.pt", changed(**fields)) for fields in (
        {"state": [1]}, {"param_groups": {}}, {"param_groups": [1]}, {"param_groups": [{}]},
    )],
    ("optimizer.bin", saved({"state": {"w": 1}, "param_groups": []})),
    *[("rng_state.pth", changed(**fields)) for fields in (
        {"python": 5}, {"python": (3, (1, 2), None)}, {"numpy": 5}, {"cpu": 5},
        {"cpu": torch.zeros(3)}, {"cpu": torch.zeros(3, dtype=torch.uint8)},
    )],
    *[(name, saved(content)) for content in (None, [1])
      for name in ("scaler.pt", "pytorch_model.bin")],
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), CONTENT)
def test_wrong_content_is_a_fault(name, damage, run):
    state = random.getstate(), torch.get_rng_state()
    damage(run / "checkpoint-4" / name)
    assert find_fault(run / "checkpoint-4").startswith(f"{name} ")
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


@pytest.mark.parametrize("fields", [
    {"epoch": None}, {"eval_steps": None, "save_steps": 0.5}, {"train_batch_size": None},
    {"stateful_callbacks": None}, {"best_metric": float("nan"), "total_flos": 3},
    {"stateful_callbacks": {"A": [{"args": {}, "attributes": {}}], "B": {}}},
])  # fmt: skip
def test_states_of_other_runs_and_releases_are_no_fault(fields, run):
    path = run / "checkpoint-4" / "trainer_state.json"
    changed(**fields)(path)
    assert find_fault(path.parent) is None
    state = json.loads(path.read_text())
    path.write_text(json.dumps({name: state[name] for name in list(state) if name in (
        "epoch", "global_step", "max_steps", "log_history")}))  # fmt: skip
    assert find_fault(path.parent) is None


def test_one_step_beyond_the_end_is_no_fault(run):
    """The stock Trainer takes one when a completed run is resumed, and saves it."""
    args = arguments(run, optim="fromage", save_strategy="steps", save_steps=1)
    Trainer(gpt2(), args, train_dataset=rows()).train(str(run / "checkpoint-4"))
    state = json.loads((run / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["global_step"] > state["max_steps"]
    assert find_fault(run / "checkpoint-5") is None


@pytest.mark.parametrize("name", ["checkpoints", "saved_states"])
def test_checkpoints_can_be_looked_at_before_anything_else_is_loaded(name):
    code = f"import hf_relopt.hf.{name}"
    subprocess.run([sys.executable, "-c", code], check=True)
