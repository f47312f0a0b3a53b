"""Metrics of layers: quantiles, and what counts in which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, create_optimizer
from hf_relopt.step.measured import quantile


def measured(optimizer, params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.measure_next_step()
    optimizer.step()
    return optimizer.take_measured()


def test_quantiles_lie_between_two_values():
    assert [quantile([1.0, 2.0, 3.0], q) for q in (0, 0.25, 0.5, 1)] == [1.0, 1.5, 2.0, 3.0]
    assert quantile([5.0], 0.9) == 5.0
    assert quantile([0.0, 1.0], 0.1) == pytest.approx(0.1)


def test_roles_are_those_of_the_plan_and_add_up():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = create_optimizer(net, "fromage_spectral", 0.02)
    net(torch.arange(9)).square().mean().backward()
    params = list(net.parameters())
    found = measured(optimizer, params, [param.grad for param in params]).metrics
    roles = {name.partition("/")[2] for name in found if "/" in name}
    assert roles == {group["role"] for group in optimizer.param_groups}
    assert {f"{kind}/{role}" for kind in ("relative_update", "at_bound") for role in roles} <= set(
        found
    )
    assert found["relative_update_p10"] <= found["relative_update_p50"]
    assert found["relative_update_p90"] <= found["relative_update_max"]


def test_of_what_was_not_stepped_nothing_counts_as_its_relative_update():
    """No gradient, a NaN, all zeros, a tensor that started at zero, a vector in the distance."""
    params = [nn.Parameter(torch.ones(2, 3)) for _ in range(4)]
    params += [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.ones(5))]
    optimizer = Fromage(params, lr=0.1)
    grads = [torch.eye(2, 3), None, torch.full((2, 3), float("nan")), torch.zeros(2, 3)]
    found = measured(optimizer, params, [*grads, torch.ones(2, 3), torch.ones(5)])
    updates = [layer.relative_update for layer in found.layers]
    assert updates[1:5] == [None] * 4
    assert [layer.measured for layer in found.layers] == [True, False, True, True, True, True]
    assert found.metrics["step_drt"] == pytest.approx(updates[0])
    assert found.metrics["relative_update_max"] == updates[0]
    assert found.metrics["skipped_tensors"] == 1


def test_a_step_in_which_nothing_can_be_used_has_no_quantiles():
    param = nn.Parameter(torch.ones(2, 3))
    optimizer = Fromage([param])
    found = measured(optimizer, [param], [torch.full((2, 3), float("inf"))]).metrics
    assert "relative_update_p50" not in found
    assert found["relative_update"] == 0 and found["step_drt"] == 0
