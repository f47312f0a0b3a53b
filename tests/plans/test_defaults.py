"""Default learning rates, and what a learning rate has to be remarked on for."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, create_optimizer, plan
from hf_relopt.optim.create import default_lr
from hf_relopt.plans.defaults import (
    Look,
    default_for,
    default_lrs,
    look_at,
    range_for,
    remark_on,
    remark_on_part,
    remarks,
)
from hf_relopt.plans.entries import OPTIMIZERS


def model(trained=False, lora=False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    if trained:
        net[1].weight.data[0] = 1.5
    if lora:
        net[0].requires_grad_(False)
        net.lora_A = nn.Module()
        net.add_module("adapter", nn.Module())
        net.adapter.lora_B = nn.Linear(4, 2, bias=False)
    return net


@pytest.mark.parametrize(
    ("given", "expected", "evidence"),
    [
        ({}, None, "untrained"),
        ({"trained": True}, 0.001, "1.weight"),
        ({"trained": True, "lora": True}, 0.03, "LoRA"),
    ],
)
@pytest.mark.parametrize(
    ("name", "from_scratch"),
    [
        *[("fromage", 0.01), ("madam", 0.01), ("fromage_spectral", 0.02)],
        *[("fromage_momentum", 0.02), ("muonh", 0.02), ("adamh", 0.02)],
    ],
)
def test_default_rate_follows_the_model(name, from_scratch, given, expected, evidence):
    net = model(**given)
    expected = expected or from_scratch
    lr, why = default_lr(net, name)
    assert lr == expected
    assert evidence in why
    assert {g["lr"] for g in create_optimizer(net, name).param_groups} == {expected}
    assert {g["lr"] for g in create_optimizer(net, name, 0.5).param_groups} == {0.5}


def test_a_default_from_scratch_that_follows_the_steps_of_the_run():
    net = model()

    def rate(steps, net=net, name="fromage_spectral"):
        (lr,) = {
            group["lr"]
            for group in create_optimizer(net, name, num_training_steps=steps).param_groups
        }
        return lr

    steps = (1, 230, 600, 2000, 4000, 17_500, 10**7)
    assert list(map(rate, steps)) == [0.04, 0.04, 0.029, 0.02, 0.016, 0.01, 0.01]
    assert rate(None) == 0.02 and rate(600, model(trained=True)) == 0.001
    assert rate(600, model(lora=True)) == 0.03
    assert [rate(600, name=name) for name in ("fromage", "muonh")] == [0.01, 0.02]
    for bad in (0, -3, 2.5, "600", True):
        with pytest.raises(ConfigError, match=r"num_training_steps is .*at least 1"):
            create_optimizer(net, "fromage", num_training_steps=bad)


def test_adapters_that_are_frozen_do_not_count():
    net = model(lora=True)
    net.adapter.requires_grad_(False)
    assert default_lr(net, "fromage")[0] == 0.01


LOOKS = {
    "untrained": Look("untrained", "evidence"),
    "pretrained": Look("pretrained", "evidence"),
    "LoRA": Look("adapters", "evidence", ("lora",)),
    "prompts": Look("adapters", "evidence", ("prompt_tuning", "lora")),
    "OSF": Look("adapters", "evidence", ("osf",)),
}
each_look = pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
each_name = pytest.mark.parametrize("optim", OPTIMIZERS)


@each_look
@each_name
def test_a_default_is_in_its_own_range_and_is_not_remarked_on(optim, look):
    lr, fit = default_for(look, optim), range_for(look, optim)
    assert fit.least < fit.low <= lr <= fit.high < fit.most
    assert remark_on(lr, look, optim) is None


@each_look
@each_name
def test_a_remark_says_how_far_off_and_what_makes_sense(optim, look):
    fit = range_for(look, optim)
    small, large = (remark_on(lr, look, optim) for lr in (fit.least / 2, 2 * fit.most))
    for text in (small, large):
        assert text is not None and f"Under {optim} a learning rate is the size of a step" in text
        assert f"{fit.low:g} to {fit.high:g} make sense" in text
        assert f"Leave it out for {default_for(look, optim):g}" in text
    assert "hardly moves anything" in small and "is too large" in large
    assert f"by {2 * fit.most:.0%} of their size" in large
    edges = [remark_on(lr, look, optim) for lr in (0.0, fit.least, fit.most)]
    assert edges == [None, None, None], "0 is said on purpose"


@each_name
def test_where_nobody_knows_the_model_only_what_fits_nowhere_is_remarked_on(optim):
    for look in LOOKS.values():
        assert remark_on(default_for(look, optim), None, optim) is None or look.kinds
    assert "in most cases" in remark_on(2e-5, None, optim)
    assert "matrix.lr is 1e-05, which hardly moves" in remark_on_part(1e-5, optim, "matrix.lr")
    assert remark_on_part(0.01, optim, "head.lr") is None


def test_adapters_are_called_what_people_call_them():
    assert Look("adapters", "", ("lora", "ia3")).words == (
        "the model has LoRA and IA3 adapters to train"
    )
    assert Look("adapters", "", ("new_kind",)).kinds == "new_kind"
    assert LOOKS["pretrained"].words == "the model looks pretrained"


@each_name
def test_defaults_in_words_are_those_of_the_situations(optim):
    words = default_lrs(optim)
    for name in ("untrained", "pretrained", "LoRA"):
        assert f"{default_for(LOOKS[name], optim):g}" in words


@pytest.mark.parametrize(("lr", "overrides", "given", "words"), [
    (2e-5, {}, True, ["learning rate 2e-05 hardly moves"]),
    (2e-5, {}, False, []),
    (0.01, {}, True, []),
    (0.01, {"vector": {"lr": 1e-5}}, True, ["vector.lr is 1e-05, which hardly moves"]),
    (0.01, {"vector": {"rule": "adamw"}}, True, ["vector.rule is adamw and vector.lr is not"]),
    (0.01, {"vector": {"rule": "adamw", "lr": 1e-5}}, True, []),
    (0.01, {"vector": {"rule": "adamw"}, "*.bias": {"lr": 1e-5},
            "*.weight": {"lr": 0.01}}, True, []),  # they follow AdamW
], ids=str)  # fmt: skip
def test_what_a_plan_is_remarked_on_for(lr, overrides, given, words):
    net = model()
    chosen = plan(net, "fromage", lr, overrides=overrides)
    look = functools.partial(look_at, net)
    found = list(remarks(chosen, overrides, lr_is_given=given, look=look))
    assert len(found) == len(words), found
    for text, word in zip(found, words, strict=True):
        assert word in text


def test_the_model_is_not_looked_at_where_there_is_nothing_to_say():
    net = model()
    asked = []
    chosen = plan(net, "fromage", 0.005)
    assert not list(remarks(chosen, None, lr_is_given=True, look=lambda: asked.append(1)))
    assert not asked
