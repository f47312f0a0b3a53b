"""Layers stand in the order of the network, under the model's own names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam, create_optimizer
from hf_relopt.telemetry.network import layers_of, norms_of
from tests.hf.tiny import gpt2


def test_order_and_names_are_the_model_s_and_numbers_the_optimizer_s():
    model = gpt2()
    optimizer = create_optimizer(model, "fromage_spectral", 0.01)
    layers = layers_of(optimizer, model)
    assert [layer.name for layer in layers] == [name for name, _ in model.named_parameters()]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    assert all(params[layer.number] is layer.param for layer in layers)
    assert [layer.number for layer in layers] != sorted(layer.number for layer in layers)
    attention = next(layer for layer in layers if layer.name.endswith("c_attn.weight"))
    assert attention.described() == {
        "name": "transformer.h.0.attn.c_attn.weight",
        "role": "matrix",
        "shape": [16, 48],
        "follows": "fromage, spectral, 3 blocks",
    }


def test_wrappers_leave_no_trace_in_names():
    model = nn.Sequential(nn.Linear(2, 3))
    optimizer = Fromage(model.parameters())
    wrapped = nn.DataParallel(torch.compile(model))
    assert [layer.name for layer in layers_of(optimizer, wrapped)] == ["0.weight", "0.bias"]


def test_without_a_model_they_are_those_of_the_groups():
    weights = {"a": nn.Parameter(torch.ones(2, 2)), "b": nn.Parameter(torch.ones(3))}
    groups = [{"params": [("b", weights["b"])]}, {"params": [("a", weights["a"])]}]
    layers = layers_of(Madam(groups), None)
    assert [(layer.name, layer.role) for layer in layers] == [("b", "vector"), ("a", "matrix")]
    stranger = nn.Linear(2, 2)
    assert [layer.name for layer in layers_of(Madam(groups), stranger)] == ["b", "a"]


def test_weights_that_the_model_does_not_have_come_last():
    model = nn.Linear(2, 2, bias=False)
    extra = nn.Parameter(torch.ones(4))
    layers = layers_of(Fromage([("extra", extra), ("mine", model.weight)]), model)
    assert [layer.name for layer in layers] == ["weight", "extra"]


def test_norms_are_full_and_wide():
    params = [nn.Parameter(torch.full((3,), 1e30)), nn.Parameter(torch.zeros(2, 2))]
    params.append(nn.Parameter(torch.ones(4, dtype=torch.bfloat16)))
    norms = norms_of(layers_of(Fromage(params), None))
    assert norms == [pytest.approx(3**0.5 * 1e30), 0.0, 2.0]
