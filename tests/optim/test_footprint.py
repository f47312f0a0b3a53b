"""Bytes that were predicted from shapes are those that an optimizer really keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard

from hf_relopt import Fromage, create_optimizer, plan
from hf_relopt.optim.footprint import footprint, held, state_of_weight
from hf_relopt.options.method import method_of
from hf_relopt.sharding.layout import local
from hf_relopt.step.state import new_buffers, slices
from tests.sharding.one_of_many import as_rank, sharded

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
@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral", "fromage_factored"])
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


def test_gradients_that_pass_are_never_there_together():
    model = _model(torch.float32)
    largest = 4 * max(param.numel() for param in model.parameters())
    chosen = plan(model, "fromage", step_in_backward=True)
    assert footprint(model.parameters(), chosen, itemsize=4).gradients == largest
    overrides = {"vector": {"step_in_backward": False}}
    chosen = plan(model, "fromage", step_in_backward=True, overrides=overrides)
    assert footprint(model.parameters(), chosen, itemsize=4).gradients == largest + 4 * 8


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    ("shape", "options", "rows", "columns"),
    [
        ((7, 4), {}, (3, 1), (1, 4)),
        ((8, 4), {"scale": "block", "split_sizes": 2}, (3, 1), (2, 4)),
        ((7, 4), {"scale": "block", "split_sizes": 2, "split_dim": 1}, (3, 2), (1, 4)),
        ((4, 3, 2), {"scale": "block"}, (2, 3, 1), (2, 1, 2)),
        ((7, 3, 2), {}, (3, 1, 1), (1, 3, 2)),
    ],
    ids=str,
)
def test_factors_are_cut_where_their_rows_are(shape, options, rows, columns, ranks):
    """What the first of the ranks has of them."""
    with as_rank(0, (ranks,)) as mesh:
        param = nn.Parameter(sharded(torch.ones(shape), mesh, [Shard(0)]))
        (group,) = Fromage([param], direction="factored", **options).param_groups
        method = method_of(group, param)
        made = new_buffers(method, param)
        state = sum(local(tensor).nbytes for tensor in made.values())
    if ranks == 3:
        assert [tuple(local(tensor).shape) for tensor in made.values()] == [rows, columns]
    few = 4 * (2 + slices(method, param.shape))
    assert state_of_weight(group, torch.ones(shape), ranks) == (0, state + few)


@pytest.mark.parametrize("shape", [(8, 3), (5, 3), (1, 7), (3,), (), (0, 4)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_largest_part_is_that_of_a_chunk(shape, ranks):
    whole = torch.zeros(shape)
    first = whole if whole.dim() == 0 else whole.chunk(ranks)[0]
    assert held(whole, ranks) == first.numel()
