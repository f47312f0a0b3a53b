"""What is measured is what happened; measuring changes no bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from tests.cases import BY_NAME
from tests.tensors import ULP, same_bits, set_gradients, snapshot, weights

KEYS = {"relative_update", "at_bound", "changed_entries", "skipped_tensors"}


@pytest.mark.parametrize("name", ["fromage", "madam", "fromage-momentum-row", "fromage-block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_measuring_every_step_changes_no_bit_and_is_true(name, dtype):
    plain, measured = weights(dtype), weights(dtype)
    pair = [BY_NAME[name].make(params) for params in (plain, measured)]
    for step in range(3):
        for params, optimizer in zip((plain, measured), pair, strict=True):
            set_gradients(params, step)
            before = snapshot(params)
            if params is measured:
                optimizer.measure_next_step()
            optimizer.step()
        figures = pair[1].take_measurement()
        assert all(map(same_bits, plain, measured))
        flat = torch.cat([p.detach().double().view(-1) for p in measured])
        was = torch.cat([p.double().view(-1) for p in before])
        assert set(figures) == KEYS
        assert figures["relative_update"] == pytest.approx(
            float((flat - was).norm() / was.norm()), rel=max(2e-5, ULP[dtype])
        )
        assert figures["changed_entries"] == pytest.approx(float((flat != was).double().mean()))
        assert figures["skipped_tensors"] == 0


def test_figures_are_given_once_and_only_if_asked_for():
    params = weights(torch.float32)
    optimizer = Fromage(params)
    set_gradients(params, 0)
    optimizer.step()
    assert optimizer.take_measurement() is None
    optimizer.measure_next_step()
    assert optimizer.take_measurement() is None  # no step yet: the request stands
    optimizer.step()
    assert set(optimizer.take_measurement()) == KEYS
    assert optimizer.take_measurement() is None
    optimizer.step()
    assert optimizer.take_measurement() is None


def test_share_at_the_bound_of_fromage_counts_tensors():
    pushed, free, zero = (
        nn.Parameter(torch.ones(4)),
        nn.Parameter(torch.ones(4)),
        nn.Parameter(torch.zeros(4)),
    )
    optimizer = Fromage([pushed, free, zero], lr=0.1, p_bound=1.01)
    pushed.grad, free.grad = -torch.ones(4), torch.tensor([1.0, -1.0, 1.0, -1.0])
    zero.grad = torch.ones(4)
    optimizer.measure_next_step()
    optimizer.step()
    assert optimizer.take_measurement()["at_bound"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("scale", "share"), [("row", 0.5), ("tensor", 1.0)])
def test_share_at_the_bound_of_rows_counts_rows(scale, share):
    weight = nn.Parameter(torch.ones(2, 4))
    optimizer = Fromage([weight], lr=0.1, direction="momentum", scale=scale, p_bound=1.01)
    weight.grad = -torch.ones(2, 4)  # the first row grows, the second turns
    weight.grad[1] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    optimizer.measure_next_step()
    optimizer.step()
    assert optimizer.take_measurement()["at_bound"] == pytest.approx(share)


def test_share_at_the_bound_of_madam_counts_entries():
    weight = nn.Parameter(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    optimizer = Madam([weight], lr=0.1, p_scale=1.05)
    weight.grad = torch.tensor([-1.0, 1.0, 1.0, 1.0])  # one grows to its bound, three shrink
    optimizer.measure_next_step()
    optimizer.step()
    assert weight[0].item() == pytest.approx(1.05)
    assert optimizer.take_measurement()["at_bound"] == pytest.approx(1 / 4)


def test_what_stood_still_is_told():
    params = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(12))]
    optimizer = Fromage(params, lr=0.1)
    params[0].grad = torch.full((4,), float("nan"))
    params[1].grad = torch.cat([torch.ones(6), torch.zeros(6)])
    optimizer.measure_next_step()
    optimizer.step()
    figures = optimizer.take_measurement()
    assert figures["skipped_tensors"] == 1
    assert figures["changed_entries"] == pytest.approx(12 / 16)  # the factor moves zeros' rows too


def test_a_stall_in_bfloat16_shows():
    """Rounding to nearest at a rate under half a unit in the last place: nothing moves."""
    weight = nn.Parameter(torch.rand(64, dtype=torch.bfloat16) + 0.5)
    stuck = copy.deepcopy(weight)
    shares = []
    for param, rounding in ((weight, "stochastic"), (stuck, "nearest")):
        optimizer = Madam([param], lr=2.0**-11, rounding=rounding)
        param.grad = torch.ones_like(param)
        optimizer.measure_next_step()
        optimizer.step()
        shares.append(optimizer.take_measurement()["changed_entries"])
    assert shares[1] == 0
    assert 0 < shares[0] < 0.6


def test_a_step_without_gradients_measures_nothing():
    optimizer = Fromage([nn.Parameter(torch.ones(2))])
    optimizer.measure_next_step()
    with pytest.warns(UserWarning, match="trains nothing"):
        optimizer.step()
    assert optimizer.take_measurement() is None
