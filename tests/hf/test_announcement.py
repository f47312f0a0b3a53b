"""The first thing a user reads of an optimizer is right, in a resumed run, too."""

from __future__ import annotations

import pytest
from transformers import Trainer, TrainerCallback

from hf_relopt import RelOptTrainer
from hf_relopt.hf.callbacks import unwrapped
from tests.hf.tiny import arguments, gpt2, pretrained, rows

BOTH = pytest.mark.parametrize("trainer", [Trainer, RelOptTrainer])


class StopAfterSave(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = True


def interrupted(folder, said, **given):
    """A run that was stopped at its checkpoint, in ``folder``; what it said is forgotten."""
    given = {"save_strategy": "steps", "save_steps": 2, "optim": "fromage", **given}
    model = given.pop("model", gpt2())
    args = arguments(folder, **given)
    Trainer(model, args, train_dataset=rows(), callbacks=[StopAfterSave()]).train()
    said.lines.clear()
    said.levels.clear()


def plan_rates(line):
    head, *body = line.splitlines()[1:]
    start = head.index(" lr ")
    return {row[start - 6 : start + 3].split()[-1] for row in body}


@BOTH
@pytest.mark.parametrize("first", [None, 0.02])
def test_a_resumed_run_says_the_checkpoint_s_learning_rate_first(trainer, first, tmp_path, said):
    interrupted(tmp_path, said, **({"learning_rate": first} if first else {}))
    args = arguments(tmp_path, optim="fromage")
    job = trainer(gpt2(seed=5), args, train_dataset=rows())
    job.train(resume_from_checkpoint=True)
    lr = first or 0.01
    rates = said.about("learning rate")
    assert rates == [f"resumed: learning rate {lr:g}, from the checkpoint."]
    (plan,) = said.about("follows")
    assert plan_rates(plan) == {f"{lr:g}"}
    assert said.lines.index(rates[0]) < said.lines.index(plan)
    assert args.learning_rate == lr
    assert {g["initial_lr"] for g in unwrapped(job.optimizer).param_groups} == {lr}


@BOTH
def test_a_learning_rate_that_a_resumed_run_does_not_use_is_named(trainer, tmp_path, said):
    interrupted(tmp_path, said)
    args = arguments(tmp_path, optim="fromage", learning_rate=0.05)
    trainer(gpt2(seed=5), args, train_dataset=rows()).train(resume_from_checkpoint=True)
    assert said.about("learning rate") == [
        "resumed: learning rate 0.01, from the checkpoint (not 0.05, as given)."
    ]


@BOTH
def test_the_plan_of_a_resumed_run_has_the_checkpoint_s_options(trainer, tmp_path, said):
    interrupted(tmp_path, said, optim="fromage_spectral", optim_args="vector.lr=0.004")
    args = arguments(tmp_path, optim="fromage_spectral", optim_args="vector.lr=0.006")
    trainer(gpt2(seed=5), args, train_dataset=rows()).train(resume_from_checkpoint=True)
    (plan,) = said.about("follows")
    assert plan_rates(plan) == {"0.1", "0.04", "0.004"}


@BOTH
@pytest.mark.parametrize("trained", [False, True])
def test_without_a_saved_state_the_rate_is_that_of_the_first_start(
    trainer, trained, tmp_path, said
):
    """The weights that are loaded look pretrained; what the run started from decides."""
    model = pretrained if trained else (lambda made: made)
    interrupted(tmp_path, said, model=model(gpt2()), optim="adamw_torch")
    folder = tmp_path / "checkpoint-2"
    (folder / "optimizer.pt").unlink()
    args = arguments(tmp_path, optim="fromage")
    job = trainer(model(gpt2(seed=5)), args, train_dataset=rows())
    discards = {"discard_optimizer_state": True} if trainer is RelOptTrainer else {}
    job.train(resume_from_checkpoint=True, **discards)
    lr, kind = (0.001, "pretrained") if trained else (0.01, "untrained")
    assert said.about("learning rate") == [
        f"learning rate {lr:g}, since none was given and the model looks {kind}."
    ]
    (plan,) = said.about("follows")
    assert plan_rates(plan) == {f"{lr:g}"}
    assert {g["initial_lr"] for g in unwrapped(job.optimizer).param_groups} == {lr}


def test_a_discarded_state_and_a_model_made_anew(tmp_path, said):
    interrupted(tmp_path, said, optim="adamw_torch")
    args = arguments(tmp_path, optim="madam")
    job = RelOptTrainer(args=args, model_init=lambda: gpt2(seed=5), train_dataset=rows())
    job.train(resume_from_checkpoint=True, discard_optimizer_state=True)
    assert said.about("learning rate 0.01, since none was given and the model looks untrained.")
    assert args.learning_rate == 0.01


def test_a_fresh_run_says_it_before_anything_trains(tmp_path, said):
    class Look(TrainerCallback):
        seen = None

        def on_train_begin(self, args, state, control, **kwargs):
            self.seen = list(said.lines)

    look = Look()
    args = arguments(tmp_path, optim="fromage")
    job = Trainer(gpt2(), args, train_dataset=rows(), callbacks=[look])
    job.train()
    assert [line.split(",")[0] for line in look.seen] == [
        "learning rate 0.01",
        "fromage: 16 tensors",
        "max_grad_norm changes nothing under fromage.",
    ]
    before = len(said.lines)
    job.train()  # with the optimizer it has
    assert len(said.lines) == before
