"""Learning rate, weight_decay, constant schedules and clipping: obeyed, or one line says why."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import Trainer

from hf_relopt import ConfigError
from hf_relopt.hf import log
from hf_relopt.plans.entries import OPTIMIZERS
from tests.cases import HAS_TRITON
from tests.hf.tiny import arguments, gpt2, pretrained, rows


def build(args, model=None):
    """The optimizer of the stock Trainer, and the learning rate it trains with."""
    optimizer = Trainer(model or gpt2(), args, train_dataset=rows()).create_optimizer()
    return optimizer, optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("optim", "trained", "expected"),
    [
        ("fromage", False, 0.01),
        ("madam", False, 0.01),
        ("fromage_momentum", False, 0.02),
        *[(optim, True, 0.001) for optim in ("fromage", "madam", "fromage_spectral")],
    ],
)
def test_default_learning_rate_is_ours_and_is_written_back(
    optim, trained, expected, tmp_path, said
):
    args = arguments(tmp_path, optim=optim)
    model = pretrained(gpt2()) if trained else gpt2()
    _, lr = build(args, model)
    assert lr == expected
    assert args.learning_rate == expected
    (line,) = said.about("learning rate")
    kind = "pretrained" if trained else "untrained"
    assert line == f"learning rate {expected:g}, since none was given and the model looks {kind}."


def test_a_preset_s_default_knows_how_long_the_run_is(tmp_path, said):
    """0.02 for 2,000 steps, and the more the fewer there are: by max_steps, or by epochs."""

    def choice(data=None, **given):
        args = arguments(tmp_path, optim="fromage_spectral", **given)
        job = Trainer(gpt2(), args, train_dataset=data or rows())
        at_first = args.learning_rate
        optimizer = job.create_optimizer()
        assert {at_first, args.learning_rate} == {
            group["lr"] for group in optimizer.param_groups if group["role"] == "matrix"
        }
        return at_first

    assert choice(max_steps=600) == 0.029
    assert said.about("learning rate") == [
        "learning rate 0.029, since none was given, the model looks untrained and the run has 600 "
        "steps."
    ]
    assert [choice(max_steps=steps) for steps in (1, 1000, 2000, 4000, 10**6)] == [
        *(0.04, 0.025, 0.02, 0.016, 0.01)
    ]
    assert choice(max_steps=600, learning_rate=0.02) == 0.02
    # 1,202 examples in batches of 2, two of them a step, are 301 steps.
    of_epochs = {"max_steps": -1, "per_device_train_batch_size": 2}
    assert choice(rows(1202), **of_epochs, num_train_epochs=2, gradient_accumulation_steps=2) == (
        OPTIMIZERS["fromage_spectral"].lr_from_scratch(602)
    )
    assert choice({"one": rows(600), "two": rows(602)}, **of_epochs, num_train_epochs=1) == (
        OPTIMIZERS["fromage_spectral"].lr_from_scratch(601)
    )


def test_steps_that_cannot_be_counted_are_nobody_s_business(tmp_path, said):
    """A Trainer that only evaluates may have no batches; what a subclass sets comes later."""

    class Later(Trainer):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            self.factor = 2

        def get_total_train_batch_size(self, args):
            return super().get_total_train_batch_size(args) * self.factor

    no_max = {"max_steps": -1, "optim": "fromage_spectral"}
    for cls, given in (
        (Later, {}),
        (Trainer, {"per_device_train_batch_size": 0}),
        (Trainer, {"num_train_epochs": float("inf")}),
    ):
        args = arguments(tmp_path, **{**no_max, **given})
        cls(gpt2(), args, train_dataset=rows())
        assert args.learning_rate == 0.02
    # Data by number, in a dict, are examples and not datasets.
    args = arguments(tmp_path, **no_max, num_train_epochs=1, per_device_train_batch_size=1)
    Trainer(gpt2(), args, train_dataset=dict(enumerate(rows(600))))
    assert args.learning_rate == 0.029


def test_what_the_look_saw_and_how_to_force_a_default_is_said_at_debug_level(tmp_path, said):
    logging.getLogger("hf_relopt").setLevel(logging.DEBUG)
    try:
        build(arguments(tmp_path, optim="fromage"))
    finally:
        logging.getLogger("hf_relopt").setLevel(logging.INFO)
    (line,) = {line for line in said.lines if "lr=..." in line}
    assert "norm" in line and "5e-05" in line
    assert "DEBUG" in said.levels


def test_model_without_norms_and_without_a_source_counts_as_untrained(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    args = arguments(tmp_path, optim="fromage")
    assert build(args, model)[1] == 0.01


def test_rate_that_was_given_is_obeyed(tmp_path, said):
    args = arguments(tmp_path, optim="fromage", learning_rate=0.2)
    assert build(args)[1] == 0.2
    assert args.learning_rate == 0.2
    assert said.about("as given") == ["learning rate 0.2, as given."]


def test_rate_zero_is_a_rate_that_was_given(tmp_path):
    assert build(arguments(tmp_path, optim="fromage", learning_rate=0.0))[1] == 0.0


def test_optim_args_force_the_rate_that_is_the_default(tmp_path, said):
    args = arguments(tmp_path, optim="fromage", optim_args="lr=5e-5")
    assert build(args)[1] == 5e-5
    assert args.learning_rate == 5e-5
    assert said.about("from optim_args")


def test_optim_args_win_over_learning_rate(tmp_path):
    args = arguments(tmp_path, optim="fromage", optim_args="lr=0.05", learning_rate=0.2)
    assert build(args)[1] == 0.05
    assert args.learning_rate == 0.05


@pytest.mark.parametrize("lr", [-0.1, 1.0, float("nan"), float("inf")])
def test_rate_out_of_range_is_refused_when_the_arguments_are_built(lr, tmp_path):
    with pytest.raises(ConfigError, match="0 <= lr < 1"):
        arguments(tmp_path, optim="madam", learning_rate=lr)


@pytest.mark.parametrize(
    ("optim", "remedy"),
    [("fromage", "p_bound=1.0"), ("madam", "p_scale"), ("fromage_spectral", "matrix.p_bound=2.0")],
)
def test_weight_decay_is_refused_with_the_remedy(optim, remedy, tmp_path):
    with pytest.raises(ConfigError) as error:
        arguments(tmp_path, optim=optim, weight_decay=0.1)
    for words in ("weight_decay is 0.1", optim, "--weight_decay", remedy):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("schedule", "warned"),
    [("linear", 0), ("cosine", 0), ("constant", 1), ("constant_with_warmup", 1)],
)
def test_constant_schedule_is_warned_about_once(schedule, warned, tmp_path, said):
    args = arguments(tmp_path, optim="fromage", lr_scheduler_type=schedule)
    Trainer(gpt2(), args, train_dataset=rows()).train()
    lines = said.about("lr_scheduler_type")
    assert len(lines) == warned
    if warned:
        assert said.levels[said.lines.index(lines[0])] == "WARNING"
        assert "cosine" in lines[0]


def test_clipping_line_is_short_and_said_once_where_it_changes_nothing(tmp_path, said):
    for _ in range(2):
        build(arguments(tmp_path, optim="fromage"))
    assert said.about("max_grad_norm") == ["max_grad_norm changes nothing under fromage."]
    said.lines.clear()
    log._said.clear()
    build(arguments(tmp_path, optim="fromage", max_grad_norm=0.0))
    build(arguments(tmp_path, optim="madam"))
    build(arguments(tmp_path, optim="fromage", optim_args="vector.rule=adamw,vector.lr=1e-3"))
    build(arguments(tmp_path, optim="fromage", optim_args="direction=momentum"))
    build(arguments(tmp_path, optim="fromage_spectral"))
    assert not said.about("max_grad_norm")


def test_plan_is_printed_once_with_counts(tmp_path, said):
    args = arguments(tmp_path, optim="fromage")
    model = gpt2()
    Trainer(model, args, train_dataset=rows()).train()
    (plan,) = said.about("tensors,")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in plan
    assert "lm_head.weight" in plan  # the tied name


@pytest.mark.parametrize(
    ("optim", "given", "words"),
    [
        ("fromage", {"gradient_accumulation_steps": 2}, ["gradient_accumulation_steps is 2"]),
        ("fromage", {"fp16": True}, ["fp16 is True", "bf16"]),
        ("madam", {}, ["max_grad_norm is 1", "max_grad_norm=0"]),
        ("fromage_factored", {"max_grad_norm": 0.5}, ["max_grad_norm is 0.5", "max_grad_norm=0"]),
    ],
    ids=str,
)
def test_what_needs_gradients_after_the_backward_pass_is_refused(optim, given, words, tmp_path):
    args = arguments(tmp_path, optim=optim, optim_args="step_in_backward=true")
    for name, value in given.items():
        setattr(args, name, value)  # fp16 is refused by the arguments themselves without a GPU
    with pytest.raises(ConfigError) as caught:
        build(args)
    said = str(caught.value)
    assert all(word in said for word in [*words, "step_in_backward", "or leave"]), said


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_kernels_on_a_cpu_are_refused_before_training(tmp_path, monkeypatch):
    args = arguments(tmp_path, optim="fromage", optim_args="backend=triton", use_cpu=True)
    build(args)  # in the interpreter, which takes any device
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ConfigError, match=r"backend='triton'.*these are on cpu"):
        build(args)
