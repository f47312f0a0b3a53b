"""Bytes that were predicted from shapes are those that an optimizer really keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import create_optimizer, plan
from hf_relopt.optim.footprint import footprint, held

OVERRIDES = {"vector": {"rule": "adamw", "lr": 1e-3}, "2.weight": {"skip": True}}


def _model(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5, bias=False)).to(dtype)


def _kept(optimizer: torch.optim.Optimizer, model: nn.Module) -> int:
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overrides", [None, OVERRIDES])
@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral"])
def test_bytes_are_those_that_are_kept(optim, overrides, dtype):
    model = _model(dtype)
    chosen = plan(model, optim, overrides=overrides)
    found = footprint(model.parameters(), chosen, itemsize=dtype.itemsize)
    assert found.weights == found.gradients == sum(p.nbytes for p in model.parameters())
    assert found.state == _kept(create_optimizer(model, optim, overrides=overrides), model)
    trained = [entry.param for entry in chosen.entries]
    assert found.adamw_state == _kept(torch.optim.AdamW(trained), model)


def test_frozen_weights_have_no_gradient():
    model = _model(torch.float32)
    model[0].requires_grad_(False)
    found = footprint(model.parameters(), plan(model, "madam"), itemsize=4)
    assert (found.weights, found.gradients, found.state) == (4 * 96, 4 * 40, 4 * 40 + 12)


@pytest.mark.parametrize("shape", [(8, 3), (5, 3), (1, 7), (3,), (), (0, 4)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_largest_part_is_that_of_a_chunk(shape, ranks):
    whole = torch.zeros(shape)
    first = whole if whole.dim() == 0 else whole.chunk(ranks)[0]
    assert held(whole, ranks) == first.numel()
