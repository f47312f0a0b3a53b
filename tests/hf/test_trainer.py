"""The optimizers inside Trainer: trained, measured, clipped, resumed."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_relopt import ConfigError, Fromage, Madam, RelOptTrainer
from hf_relopt.hf.callbacks import unwrapped
from hf_relopt.plans.entries import OPTIMIZERS, rule_of_name
from tests.hf.tiny import FIGURES, arguments, gpt2, rows, same, weights


class ClipCounter(RelOptTrainer):
    """Counts how often gradients are clipped, and how often their norm is taken."""

    clipped = measured = 0

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        self.clipped += norm is not None
        return norm

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.measured += norm is not None
        return norm


class PoisonOnce(TrainerCallback):
    """Puts a NaN into one tensor's gradient in the second step."""

    def __init__(self, name):
        self.name = name

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            dict(model.named_parameters())[self.name].grad.view(-1)[0] = float("nan")


@pytest.mark.parametrize("trainer", [Trainer, RelOptTrainer])
@pytest.mark.parametrize(
    ("optim", "lr"),
    [
        *[("fromage", 0.05), ("madam", 0.2), ("fromage_spectral", 0.1), ("fromage_momentum", 0.1)],
        *[("muonh", 0.1), ("adamh", 0.1)],
    ],
)
def test_training_lowers_the_loss(trainer, optim, lr, tmp_path, said):
    args = arguments(tmp_path, optim=optim, max_steps=16, logging_steps=4, learning_rate=lr)
    job = trainer(gpt2(), args, train_dataset=rows())
    job.train()
    losses = [entry["loss"] for entry in job.state.log_history if "loss" in entry]
    assert losses[-1] < 0.96 * losses[0]
    assert type(unwrapped(job.optimizer)).rule == rule_of_name(optim)
    assert said.about(f"{optim}: 16 tensors")


def test_reloptrainer_and_trainer_take_the_same_steps(tmp_path):
    """Clipping divides a gradient that Fromage divides by its norm anyway."""
    ends = []
    for trainer in (Trainer, RelOptTrainer):
        model = gpt2()
        args = arguments(tmp_path, optim="fromage", max_grad_norm=1e-3)
        trainer(model, args, train_dataset=rows()).train()
        ends.append(weights(model))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral"])
def test_each_logging_step_has_the_figures(optim, tmp_path):
    args = arguments(tmp_path, optim=optim, learning_rate=0.01, lr_scheduler_type="constant")
    rel = {"fromage": 0.1, "madam": 0.3, "fromage_spectral": 0.5}[optim]
    job = RelOptTrainer(gpt2(), args, train_dataset=rows())
    job.train()
    logged = [entry for entry in job.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    for entry in logged:
        assert set(entry) >= FIGURES
        # Fromage's step is lr of the norm, Madam's about lr of each entry; gains, which are most
        # of this model's norm, go by their momentum under the preset.
        assert entry["relative_update"] == pytest.approx(0.01, rel=rel)
        assert 0.9 < entry["changed_entries"] <= 1
        assert 0 <= entry["at_bound"] < 0.2
        assert entry["skipped_tensors"] == 0
    assert "loss" not in job.state.log_history[-1]  # the summary of the run
    assert not FIGURES & set(job.state.log_history[-1])


def test_other_optimizers_train_as_in_the_stock_trainer(tmp_path):
    ends = []
    for trainer in (Trainer, RelOptTrainer):
        model = gpt2()
        args = arguments(tmp_path, optim="adamw_torch", max_grad_norm=0.1)
        job = trainer(model, args, train_dataset=rows())
        job.train()
        ends.append((weights(model), job.state.log_history[0]["grad_norm"]))
        assert not FIGURES & set(job.state.log_history[0])
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize(
    ("optim", "text", "clipped"),
    [
        ("fromage", None, 0),
        ("fromage", "vector.rule=adamw", 4),
        ("fromage", "scale=row", 0),
        ("fromage", "direction=momentum", 4),
        ("fromage_spectral", None, 4),
        ("madam", None, 4),
        ("adamw_torch", None, 4),
    ],
)
def test_clipping_only_where_it_has_a_meaning(optim, text, clipped, tmp_path):
    args = arguments(tmp_path, optim=optim, optim_args=text, learning_rate=0.01)
    job = ClipCounter(gpt2(), args, train_dataset=rows())
    job.train()
    assert job.clipped == clipped
    # Without clipping the norm is taken for the two logging steps alone.
    assert job.measured == (4 if clipped else 2)
    assert job.state.log_history[0]["grad_norm"] > 0


@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral"])
def test_one_nan_stops_one_tensor_for_one_step(optim, tmp_path):
    name = "transformer.h.0.mlp.c_fc.weight"
    args = arguments(tmp_path, optim=optim, max_grad_norm=0.0)
    model = gpt2()
    job = RelOptTrainer(model, args, train_dataset=rows(), callbacks=[PoisonOnce(name)])
    job.train()
    state = unwrapped(job.optimizer).state
    counts = {
        n: (int(state[p]["step"]), int(state[p]["skipped"])) for n, p in model.named_parameters()
    }
    assert counts.pop(name) == (3, 1)
    assert set(counts.values()) == {(4, 0)}
    assert all(bool(torch.isfinite(param).all()) for param in model.parameters())
    assert [e["skipped_tensors"] for e in job.state.log_history if "loss" in e] == [1, 1]


@pytest.mark.parametrize("trainer", [Trainer, RelOptTrainer])
@pytest.mark.parametrize("cls", [Fromage, Madam])
def test_optimizer_class_and_options_by_hand(trainer, cls, tmp_path):
    """Trainer's own groups then, with weight_decay=0.0 in them, and its class."""
    args = arguments(tmp_path)
    options = {"lr": 0.02, "min_scale": 0.5}
    model = gpt2()
    job = trainer(model, args, train_dataset=rows(), optimizer_cls_and_kwargs=(cls, options))
    before = weights(model)
    job.train()
    optimizer = unwrapped(job.optimizer)
    assert type(optimizer) is cls
    assert [group["min_scale"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert not any(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert set(job.state.log_history[0]) >= FIGURES or trainer is Trainer


def test_weight_decay_reaches_a_class_given_by_hand(tmp_path):
    args = arguments(tmp_path, weight_decay=0.1)
    job = Trainer(gpt2(), args, train_dataset=rows(), optimizer_cls_and_kwargs=(Fromage, {}))
    with pytest.raises(ConfigError, match=r"weight_decay is 0\.1"):
        job.train()


def test_optimizers_and_schedule_by_hand(tmp_path):
    model = gpt2()
    optimizer = Fromage(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 4)
    args = arguments(tmp_path)
    job = RelOptTrainer(model, args, train_dataset=rows(), optimizers=(optimizer, schedule))
    job.train()
    logged = [entry for entry in job.state.log_history if "loss" in entry]
    # The rate that is logged is that of the step: 0.02 (1 - 1/4) in step 2.
    assert [entry["relative_update"] for entry in logged] == pytest.approx([0.015, 0.005], rel=0.1)


@pytest.mark.parametrize("trainer", [Trainer, RelOptTrainer])
@pytest.mark.parametrize(
    ("optim", "text"),
    [
        ("madam", "vector.rule=adamw,vector.lr=1e-3"),
        ("fromage_spectral", None),
        ("fromage_spectral", "momentum_dtype=bfloat16,embedding.direction=adam,seed=3"),
        ("fromage", "direction=adam,bound=sphere,vector.rule=adamw,vector.lr=1e-3"),
        ("muonh", "embedding.weight_decay=0.1"),
    ],
)
def test_resume_goes_on_bit_for_bit(trainer, optim, text, tmp_path):
    given = {"optim": optim, "optim_args": text, "save_steps": 2}
    straight = gpt2()
    args = arguments(tmp_path / "straight", save_strategy="steps", **given)
    trainer(straight, args, train_dataset=rows()).train()

    class StopAfterSave(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = True

    args = arguments(tmp_path / "cut", save_strategy="steps", **given)
    trainer(gpt2(), args, train_dataset=rows(), callbacks=[StopAfterSave()]).train()
    resumed = gpt2(seed=5)
    args = arguments(tmp_path / "cut", save_strategy="steps", **given)
    job = trainer(resumed, args, train_dataset=rows())
    job.train(resume_from_checkpoint=True)
    assert job.state.global_step == 4
    assert same(weights(straight), weights(resumed))
    # The loaded model looks pretrained, but it is the first start's rate that goes on.
    assert args.learning_rate == OPTIMIZERS[optim].lr_from_scratch(steps=4)


def test_resume_of_another_optimizer_s_checkpoint_names_both(tmp_path):
    args = arguments(
        tmp_path, optim="adamw_torch", max_steps=2, save_strategy="steps", save_steps=2
    )
    Trainer(gpt2(), args, train_dataset=rows()).train()
    args = arguments(tmp_path, optim="fromage")
    with pytest.raises(ConfigError, match=r"(?s)AdamW.*Fromage"):
        Trainer(gpt2(), args, train_dataset=rows()).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("first", "then"),
    [("fromage", "fromage_momentum"), ("fromage_momentum", "fromage_spectral")],
)
def test_resume_in_another_direction_names_both(first, then, tmp_path):
    """A model without fused weights has the same groups under all of these names."""
    cut = "matrix.scale=tensor"
    given = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    text = cut if first == "fromage_momentum" else None
    args = arguments(tmp_path, optim=first, optim_args=text, **given)
    Trainer(gpt2(), args, train_dataset=rows()).train()
    args = arguments(tmp_path, optim=then, optim_args=cut)
    model = gpt2()
    job = Trainer(model, args, train_dataset=rows())
    with pytest.raises(ConfigError) as error:
        job.train(resume_from_checkpoint=True)
    assert "written with fromage" in str(error.value)
    for optim in (first, then):
        direction = optim.partition("_")[2]
        assert f"fromage ({direction})" in str(error.value) or not direction


def test_gradient_accumulation_steps_once(tmp_path):
    args = arguments(tmp_path, optim="fromage", gradient_accumulation_steps=2, max_steps=2)
    job = RelOptTrainer(gpt2(), args, train_dataset=rows())
    job.train()
    assert {int(s["step"]) for s in unwrapped(job.optimizer).state.values()} == {2}
    assert set(job.state.log_history[0]) >= FIGURES


def test_bfloat16_autocast_trains(tmp_path):
    args = arguments(tmp_path, optim="madam", bf16=True)
    model = gpt2()
    before = weights(model)
    RelOptTrainer(model, args, train_dataset=rows()).train()
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    assert not any(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_trainer_can_be_copied_with_its_arguments(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    assert copy.deepcopy(args).optim is args.optim
    assert isinstance(args, TrainingArguments)


INSIDE = "step_in_backward=true"


@pytest.mark.parametrize("trainer", [Trainer, RelOptTrainer])
@pytest.mark.parametrize("optim", ["fromage", "fromage_spectral"])
def test_steps_inside_the_backward_pass_are_the_same(trainer, optim, tmp_path):
    """With telemetry, and resumed half way from a run that stepped at the end."""
    ends, logs = [], []
    for number, said in enumerate((None, INSIDE)):
        how = {"max_grad_norm": 0.0, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
        args = arguments(tmp_path / str(number), optim=optim, optim_args=said, **how)
        model = gpt2()
        job = trainer(model, args, train_dataset=rows())
        job.train()
        ends.append(weights(model))
        logs.append([entry for entry in job.state.log_history if "loss" in entry])
    assert same(*ends)
    for one, other in zip(*logs, strict=True):
        # There is no norm of gradients that are gone.
        assert {n: v for n, v in one.items() if n != "grad_norm"} == {
            n: v for n, v in other.items() if n != "grad_norm"
        }
    model = gpt2()
    args = arguments(tmp_path / "then", optim=optim, optim_args=INSIDE, max_grad_norm=0.0)
    job = trainer(model, args, train_dataset=rows())
    job.train(resume_from_checkpoint=str(tmp_path / "0" / "checkpoint-2"))
    assert same(weights(model), ends[0])


def test_clipping_that_changes_nothing_does_not_stand_in_the_way(tmp_path):
    args = arguments(tmp_path, optim="fromage", optim_args=INSIDE, max_grad_norm=1.0)
    for trainer in (Trainer, RelOptTrainer):
        model = gpt2()
        before = weights(model)
        trainer(model, args, train_dataset=rows()).train()
        assert not same(weights(model), before)
