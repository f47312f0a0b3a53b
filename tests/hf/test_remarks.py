"""Learning rates and AdamW's arguments that nobody is likely to mean: one sentence each, once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_relopt import create_optimizer
from tests.hf.test_learning_rate import adapted
from tests.hf.tiny import arguments, gpt2, pretrained, rows

SITUATIONS = {"untrained": gpt2, "pretrained": lambda: pretrained(gpt2()), "adapters": adapted}
# (optimizer, model, learning rate, words of the warning; None for none)
TOLD = [
    ("fromage", "pretrained", 2e-5, ["2e-05 hardly moves", "AdamW", "0.001 to 0.003", "0.001."]),
    ("fromage", "pretrained", 0.5, ["0.5 is too large", "0.001 to 0.003"]),
    ("fromage", "pretrained", 0.01, ["weights by 1%"]),  # ended at chance
    ("fromage", "pretrained", 0.001, None),
    ("fromage", "pretrained", 0.003, None),
    ("fromage", "untrained", 3e-4, ["0.0003 hardly moves", "from scratch", "0.01 to 0.03"]),
    ("fromage", "untrained", 0.5, ["50%", "0.01 to 0.03"]),
    ("fromage", "untrained", 0.03, None),
    ("madam", "untrained", 1e-3, ["0.001 hardly moves", "under madam", "0.01 to 0.05"]),
    ("madam", "untrained", 0.05, None),
    ("madam", "pretrained", 0.5, ["50%"]),
    ("fromage_spectral", "untrained", 6e-4, ["0.0006 hardly moves", "0.01 to 0.04"]),
    ("fromage_spectral", "untrained", 0.04, None),
    ("fromage_spectral", "pretrained", 2e-5, ["2e-05 hardly moves", "0.001 to 0.002"]),
    ("fromage_momentum", "pretrained", 0.002, None),
    ("fromage_momentum", "pretrained", 0.008, ["0.008 is too large", "0.001 to 0.002"]),
    ("muonh", "pretrained", 0.003, None),
    ("adamh", "untrained", 6e-4, ["0.0006 hardly moves", "0.01 to 0.04"]),
    ("fromage", "adapters", 2e-4, ["0.0002 hardly moves", "for LoRA", "0.01 to 0.03", "0.03."]),
    ("fromage", "adapters", 0.01, None),
    ("madam", "adapters", 0.5, ["50%"]),
    ("fromage", "untrained", 0.0, None),  # said on purpose
]


def warned(said):
    pairs = zip(said.lines, said.levels, strict=True)
    return [line for line, level in pairs if level == "WARNING"]


def check(found, words):
    assert len(found) == (words is not None), found
    for each in words or []:
        assert each.lower() in found[0].lower(), found[0]


@pytest.mark.parametrize(("optim", "kind", "lr", "words"), TOLD)
def test_learning_rate_with_which_nothing_is_learned_is_said_by_the_trainer(
    optim, kind, lr, words, tmp_path, said
):
    args = arguments(tmp_path, optim=optim, learning_rate=lr)
    for _ in range(2):
        optimizer = Trainer(SITUATIONS[kind](), args, train_dataset=rows()).create_optimizer()
        assert optimizer.param_groups[0]["lr"] == lr  # said, and obeyed
    check(warned(said), words)


@pytest.mark.parametrize(("optim", "kind", "lr", "words"), TOLD)
def test_and_in_a_custom_training_loop(optim, kind, lr, words, said):
    optimizer = create_optimizer(SITUATIONS[kind](), optim, lr)
    create_optimizer(SITUATIONS[kind](), optim, lr)
    if kind == "untrained":
        create_optimizer(gpt2(), optim)  # a default is never remarked on
    check(warned(said), words)
    # A schedule may set what it likes: its first and last rates are small.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 1000)
    assert optimizer.param_groups[0]["lr"] == 0
    optimizer.param_groups[0]["params"][0].grad = torch.ones_like(
        optimizer.param_groups[0]["params"][0]
    )
    optimizer.step()
    schedule.step()
    optimizer.step()
    check(warned(said), words)


def test_default_learning_rates_and_schedules_with_warmup_are_not_remarked(tmp_path, said):
    for optim in ("fromage", "madam", "fromage_spectral"):
        args = arguments(tmp_path, optim=optim, warmup_steps=2)
        Trainer(pretrained(gpt2()), args, train_dataset=rows()).train()
    assert warned(said) == []


def test_forced_by_optim_args_it_is_remarked_too(tmp_path, said):
    args = arguments(tmp_path, optim="fromage", optim_args="lr=5e-5")
    Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()
    check(warned(said), ["learning rate 5e-05 hardly moves"])


def test_a_new_head_alone_may_have_a_large_one(tmp_path, said):
    """Nothing of the pretrained model moves."""
    model = pretrained(gpt2()).requires_grad_(False)
    model.lm_head = nn.Linear(16, 50)
    args = arguments(tmp_path, optim="fromage", learning_rate=0.03)
    Trainer(model, args, train_dataset=rows()).create_optimizer()
    assert warned(said) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("matrix.lr=2e-5", ["matrix.lr is 2e-05, which hardly moves", "0.001 to 0.05"]),
        ("*.wte.*.lr=0.5", ["*.wte.*.lr is 0.5, which is too large"]),
        ("embedding.lr=0.01", None),
        ("vector.lr=0", None),
        ("matrix.rule=adamw", ["matrix.rule is adamw", "at 0.001, the relative", "matrix.lr="]),
        ("matrix.rule=adamw,matrix.lr=2e-5", None),
        ("matrix.rule=adamw,*.weight.lr=2e-4", None),
        ("*.bias.rule=adamw", ["*.bias.lr is not given"]),
    ],
)
def test_overrides_that_nobody_is_likely_to_mean(text, words, tmp_path, said):
    args = arguments(tmp_path, optim="fromage", optim_args=text)
    for _ in range(2):
        job = Trainer(pretrained(gpt2()), args, train_dataset=rows())
        job.create_optimizer()
    check(warned(said), words)


def test_overrides_in_a_custom_training_loop(said):
    create_optimizer(gpt2(), "fromage_spectral", overrides={"matrix": {"rule": "adamw"}})
    check(warned(said), ["AdamW runs there at 0.02, the relative learning rate"])


def test_learning_rates_of_a_trainer_s_own_groups(tmp_path, said):
    class Own(Trainer):
        def create_optimizer(self, model=None):
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            first, *others = self.model.parameters()
            groups = [{"params": [first], "lr": 1e-6}, {"params": others}]
            self.optimizer = cls(groups, **kwargs)
            return self.optimizer

    args = arguments(tmp_path, optim="fromage")
    Own(gpt2(), args, train_dataset=rows()).create_optimizer()
    check(warned(said), ["the lr of a param group is 1e-06, which hardly moves"])


@pytest.mark.parametrize(
    ("optim", "given", "words"),
    [
        ("fromage", {"adam_beta2": 0.95}, ["0.95: fromage does not read this", "drop it"]),
        ("madam", {"adam_beta1": 0.8, "adam_epsilon": 1e-6},
         ["adam_beta1 0.8, adam_epsilon 1e-06", "read these", "beta=0.999"]),
        ("fromage_spectral", {"adam_beta1": 0.95}, ["adam_beta1 0.95", "momentum=0.9"]),
        ("fromage", {"optim_target_modules": ["mlp"]}, ["optim_target_modules ['mlp']"]),
        ("fromage", {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}, None),
        ("adamw_torch", {"adam_beta1": 0.8}, None),
    ],
)  # fmt: skip
def test_arguments_of_adamw_that_are_not_read_are_named(optim, given, words, tmp_path, said):
    for _ in range(2):
        args = arguments(tmp_path, optim=optim, **given)
        Trainer(gpt2(), args, train_dataset=rows()).create_optimizer()
    check(warned(said), words)
