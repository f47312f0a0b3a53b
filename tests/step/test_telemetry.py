"""What is measured is what happened; measuring changes no bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.step import telemetry
from tests.cases import BY_NAME
from tests.tensors import ULP, same_bits, set_gradients, snapshot, weights

KEYS = {
    *("relative_update", "at_bound", "changed_entries", "skipped_tensors", "step_drt"),
    *(f"relative_update_{name}" for name in ("p10", "p50", "p90", "max")),
    *("unchanged_by_rounding", "relative_update/matrix", "at_bound/matrix"),
}


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
        updates = [
            float((p.detach().double() - b.double()).norm() / b.double().norm())
            for p, b in zip(measured, before, strict=True)
            if b.any()
        ]
        near = {"rel": max(2e-5, ULP[dtype])}
        assert figures["relative_update_max"] == pytest.approx(max(updates), **near)
        assert figures["step_drt"] == pytest.approx(math.prod(1 + r for r in updates) - 1, **near)
        assert figures["relative_update/matrix"] == pytest.approx(
            figures["relative_update"], rel=1e-12
        )


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
        figures = optimizer.take_measurement()
        shares.append(figures["changed_entries"])
        assert figures["unchanged_by_rounding"] == pytest.approx(1 - shares[-1])
    assert shares[1] == 0
    assert 0 < shares[0] < 0.6


def test_a_step_without_gradients_measures_nothing():
    optimizer = Fromage([nn.Parameter(torch.ones(2))])
    optimizer.measure_next_step()
    with pytest.warns(UserWarning, match="trains nothing"):
        optimizer.step()
    assert optimizer.take_measurement() is None


def stuck_share(optimizer):
    optimizer.measure_next_step()
    optimizer.step()
    return optimizer.take_measurement()["unchanged_by_rounding"]


def test_entries_that_a_step_was_not_to_change_are_not_rounded_away():
    """No gradient, an entry that is zero under Madam, one at its bound, a row that rests."""
    weight = nn.Parameter(torch.ones(8))
    weight.grad = torch.cat([torch.ones(4), torch.zeros(4)])
    assert stuck_share(Madam([weight], lr=0.01)) == 0
    weight = nn.Parameter(torch.cat([torch.ones(6), torch.zeros(2)]))
    weight.grad = torch.full((8,), -1.0)
    optimizer = Madam([weight], lr=0.5, p_scale=1.0)
    assert stuck_share(optimizer) == 0
    assert stuck_share(optimizer) == 0  # by now at the bound
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Fromage([weight], lr=0.01, direction="momentum", scale="row")
    for having in (range(4), range(2)):
        weight.grad = torch.zeros(4, 4)
        weight.grad[list(having)] = torch.randn(len(having), 4)
        assert stuck_share(optimizer) == 0
    weight.grad = torch.full((4, 4), float("nan"))
    assert stuck_share(optimizer) == 0


def test_half_of_the_entries_are_below_the_resolution():
    weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = Fromage([weight], lr=0.02, rounding="nearest")
    weight.grad = torch.tensor([1.0, -1, 1, -1, 1e-3, -1e-3, 1e-3, -1e-3], dtype=torch.bfloat16)
    assert stuck_share(optimizer) == 0.5


@pytest.mark.parametrize("scale", ["tensor", "row", "block"])
@pytest.mark.parametrize("backend", ["foreach", "loop"])
def test_each_layer_has_its_own_numbers(scale, backend, monkeypatch):
    """Whatever is laid end to end: several tensors at once, or one after the other."""
    torch.manual_seed(0)
    shapes = [(6, 4), (3, 8), (6, 4), (9, 2)]
    found = []
    for most in (None, 1):
        params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        for number, param in enumerate(params):
            param.data = torch.randn(param.shape, generator=torch.Generator().manual_seed(number))
        split = {"split_sizes": 3} if scale == "block" else {}
        optimizer = Fromage(
            params, lr=0.1, direction="momentum", scale=scale, p_bound=1.0, backend=backend, **split
        )
        if most:
            monkeypatch.setattr(
                telemetry, "_at_once", lambda b: [(t, t + 1) for t in range(len(b.slots))]
            )
        for step in range(3):
            before = snapshot(params)
            set_gradients(params, step)
            params[2].grad[:2] = 0.0
            optimizer.measure_next_step()
            optimizer.step()
        measured = optimizer.take_measured()
        for layer, param, old in zip(measured.layers, params, before, strict=True):
            now = param.detach()
            assert layer.slot.param is param
            assert layer.update_norm == pytest.approx(float((now - old).norm()), rel=1e-5)
            assert layer.norm_before == pytest.approx(float(old.norm()), rel=1e-6)
            assert layer.norm == pytest.approx(float(now.norm()), rel=1e-6)
            assert layer.changed == int((now != old).sum())
            assert layer.stepped and layer.unchanged == 0
        found.append(measured.metrics)
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert 0 < found[0]["at_bound"] <= 1
