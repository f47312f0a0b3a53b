"""What is in force is written into the arguments, and never taken for what the user said."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import pytest
import torch
import yaml
from transformers import Trainer, TrainingArguments

from hf_relopt import RelOptTrainer
from hf_relopt.hf import learning_rate
from hf_relopt.hf.callbacks import unwrapped
from hf_relopt.hf.learning_rate import LrInForce
from tests.hf.tiny import arguments, forked_python, gpt2, pretrained, rows


def optimizer_of(args, model=None):
    return Trainer(model or gpt2(), args, train_dataset=rows()).create_optimizer()


def lr_of(args, model=None):
    (lr,) = {group["lr"] for group in optimizer_of(args, model).param_groups}
    return lr


def adapted():
    """A model whose LoRA adapters are trained, as PEFT names them; without PEFT, which warns."""
    model = pretrained(gpt2()).requires_grad_(False)
    attention = model.transformer.h[0].attn
    attention.lora_A = torch.nn.Linear(16, 2, bias=False)
    return model


WAYS = {
    "the same object": lambda args: args,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": lambda args: dataclasses.replace(args, max_steps=2),
    "pickle": lambda args: pickle.loads(pickle.dumps(args)),
    "to_dict": lambda args: TrainingArguments(**args.to_dict()),
    "set_optimizer": lambda args: args.set_optimizer("fromage"),
}


@pytest.mark.parametrize("way", WAYS)
def test_arguments_that_served_one_model_choose_anew_for_another(way, tmp_path, said):
    args = arguments(tmp_path, optim="fromage")
    assert lr_of(args, adapted()) == 0.03
    assert args.learning_rate == 0.03
    again = WAYS[way](args)
    assert lr_of(again, pretrained(gpt2())) == 0.001
    assert again.learning_rate == 0.001
    assert lr_of(again) == 0.01
    assert not said.about(", as given")


@pytest.mark.parametrize("way", WAYS)
def test_another_optimizer_gets_its_own_default_back(way, tmp_path):
    args = arguments(tmp_path, optim="fromage")
    assert lr_of(args) == 0.01
    again = WAYS[way](args)
    again.optim = "adamw_torch"
    assert again.learning_rate == 5e-5
    assert type(again.learning_rate) is float
    assert lr_of(again) == 5e-5
    again.optim = "muonh"
    assert lr_of(again) == 0.02


def test_another_optimizer_in_a_copy_gets_its_own_default_back(tmp_path):
    args = arguments(tmp_path, optim="madam")
    assert lr_of(args) == 0.01
    assert lr_of(dataclasses.replace(args, optim="adamw_torch")) == 5e-5
    assert lr_of(args) == 0.01


def test_a_rate_set_by_hand_between_two_trainers_is_the_user_s(tmp_path, said):
    args = arguments(tmp_path, optim="fromage")
    assert lr_of(args) == 0.01
    args.learning_rate = 0.004
    assert lr_of(args, pretrained(gpt2())) == 0.004
    args.learning_rate = 0.01  # what the first trainer had, but now it is said
    assert lr_of(args, pretrained(gpt2())) == 0.01
    assert said.about("learning rate 0.01, as given.")


def test_what_the_user_gave_is_not_forgotten(tmp_path):
    args = arguments(tmp_path, optim="fromage", learning_rate=0.02, optim_args="lr=0.005")
    assert lr_of(args) == 0.005
    assert args.learning_rate == 0.005
    args.optim_args = None
    assert lr_of(args) == 0.02
    args.optim = "adamw_torch"
    assert args.learning_rate == 0.02


def test_other_classes_have_their_own_default(tmp_path):
    from trl import SFTConfig

    args = arguments(tmp_path, optim="fromage")
    assert lr_of(args) == 0.01
    # TRL makes its own arguments of plain ones in this way.
    again = SFTConfig(**{**args.to_dict(), "bf16": False})
    assert lr_of(again, pretrained(gpt2())) == 0.001


def test_each_trial_of_a_search_over_optimizers_has_its_own_default(tmp_path):
    """What the search backends do with a Trainer; a real search is in the next test."""
    from transformers.trainer_utils import HPSearchBackend

    args = arguments(tmp_path, optim="fromage")
    job = RelOptTrainer(args=args, model_init=lambda: gpt2(), train_dataset=rows())
    job.hp_search_backend = HPSearchBackend.WANDB  # the one whose trial is a plain dict
    seen = []
    for trial in (
        {"optim": "fromage"},
        {"optim": "adamw_torch"},
        {"optim": "fromage_spectral"},
        {"optim": "madam", "learning_rate": 0.03},
        {"optim": "adamw_torch"},
    ):
        job._hp_search_setup(dict(trial))
        job.train(trial=None)
        groups = getattr(unwrapped(job.optimizer), "param_groups", job.optimizer.param_groups)
        seen.append({group["initial_lr"] for group in groups})
    # 0.03 stays with the arguments, as any value that a search sets.
    assert seen == [{0.01}, {5e-5}, {0.04}, {0.03}, {0.03}]


def test_a_search_by_optuna_ranks_each_at_its_own_learning_rate(tmp_path):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates = {}

    class Job(RelOptTrainer):
        def create_scheduler(self, *args, **kwargs):
            name = str(self.args.optim.value)
            rates.setdefault(name, set()).update(g["lr"] for g in self.optimizer.param_groups)
            return super().create_scheduler(*args, **kwargs)

    args = arguments(tmp_path, optim="adamw_torch", max_steps=2)
    data = {"train_dataset": rows(), "eval_dataset": rows(4)}
    names = ["fromage", "adamw_torch", "madam"]
    job = Job(args=args, model_init=lambda: gpt2(), **data)
    job.hyperparameter_search(
        hp_space=lambda trial: {"optim": trial.suggest_categorical("optim", names)},
        backend="optuna",
        n_trials=3,
        sampler=optuna.samplers.GridSampler({"optim": names}, seed=0),
        hp_name=lambda trial: f"trial-{trial.number}",
    )
    assert rates == {"fromage": {0.01}, "adamw_torch": {5e-5}, "madam": {0.01}}


def test_it_is_a_number_for_all_who_read_it(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    lr_of(args)
    assert isinstance(args.learning_rate, LrInForce)
    assert json.loads(args.to_json_string())["learning_rate"] == 0.01
    assert yaml.safe_load(yaml.safe_dump(args.to_dict()))["learning_rate"] == 0.01
    assert yaml.safe_load(yaml.dump({"lr": args.learning_rate})) == {"lr": 0.01}
    assert f"{args.learning_rate:g}" == repr(args.learning_rate) == "0.01"
    assert math.isclose(torch.tensor(args.learning_rate).item(), 0.01, rel_tol=1e-6)
    assert type(args.learning_rate)(0.02) == 0.02  # what a search does with a new value
    assert type(type(args.learning_rate)(0.02)) is float


def test_saved_arguments_choose_anew_in_a_fresh_process(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    lr_of(args, pretrained(gpt2()))
    torch.save(args, tmp_path / "training_args.bin")
    code = """
        import sys, torch
        args = torch.load(f"{sys.argv[1]}/training_args.bin", weights_only=False)
        assert args.learning_rate == 0.001
        from transformers import Trainer
        from tests.hf.tiny import gpt2, rows
        optimizer = Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()
        print({group["lr"] for group in optimizer.param_groups})
    """
    done = forked_python(code, str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "{0.01}\n"), done.stderr


def test_what_the_user_gave_can_be_asked_for(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    assert learning_rate.given_in(args) is None
    lr_of(args)
    assert learning_rate.given_in(args) is None
    args.learning_rate = 0.3
    assert learning_rate.given_in(args) == 0.3


def test_groups_and_schedules_have_plain_floats(tmp_path):
    """They go into checkpoints, which load with weights_only."""
    args = arguments(tmp_path, optim="fromage")
    assert {type(group["lr"]) for group in optimizer_of(args).param_groups} == {float}
    args.optim_args = "lr=0.02"
    assert {type(group["lr"]) for group in optimizer_of(args).param_groups} == {float}
