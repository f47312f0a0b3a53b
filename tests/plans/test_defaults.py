"""Default learning rates, and what a learning rate has to be remarked on for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import create_optimizer
from hf_relopt.optim.create import default_lr


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
    [("fromage", 0.01), ("madam", 0.01), ("fromage_spectral", 0.02), ("fromage_momentum", 0.02)],
)
def test_default_rate_follows_the_model(name, from_scratch, given, expected, evidence):
    net = model(**given)
    expected = expected or from_scratch
    lr, why = default_lr(net, name)
    assert lr == expected
    assert evidence in why
    assert {g["lr"] for g in create_optimizer(net, name).param_groups} == {expected}
    assert {g["lr"] for g in create_optimizer(net, name, 0.5).param_groups} == {0.5}


def test_adapters_that_are_frozen_do_not_count():
    net = model(lora=True)
    net.adapter.requires_grad_(False)
    assert default_lr(net, "fromage")[0] == 0.01
