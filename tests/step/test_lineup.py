"""The lineup: who takes part in a step, in which bundles, and what is noticed of changes."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.backends import backend
from hf_relopt.step import lineup, numbers
from hf_relopt.step.lineup import Slots
from tests.step.lineups import slots_of
from tests.tensors import (
    Optimizer,
    gradient,
    run,
    same_bits,
    set_gradients,
    snapshot,
    state_of,
    weights,
)

WAYS: dict[str, dict[str, Any]] = {
    "fromage": {},
    "momentum": {"direction": "momentum"},
    "rows": {"direction": "adam", "scale": "row", "p_bound": 1.05},
}
each_way = pytest.mark.parametrize("way", WAYS)


def made(way: str, count: int = 3) -> tuple[list[nn.Parameter], Optimizer]:
    params = [nn.Parameter(gradient(torch.empty(4, 3), n, 0.1)) for n in range(count)]
    return params, Fromage(params, lr=0.05, **WAYS[way])


# --- who takes part -----------------------------------------------------------------------


def alone(way: str, param: nn.Parameter) -> tuple[nn.Parameter, Optimizer]:
    twin = nn.Parameter(param.detach().clone())
    return twin, Fromage([twin], lr=0.05, **WAYS[way])


def together_and_alone(way: str, count: int, steps: list[set[int]]) -> Optimizer:
    """Step weights of which ``steps`` have gradients, against optimizers of one weight each."""
    params, optimizer = made(way, count)
    twins = [alone(way, param) for param in params]
    for number, having in enumerate(steps):
        for place, (param, (twin, other)) in enumerate(zip(params, twins, strict=True)):
            param.grad = gradient(param, 100 * number + place) if place in having else None
            if place in having:
                twin.grad = param.grad.clone()
                other.step()
        optimizer.step()
    for param, (twin, other) in zip(params, twins, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert same_bits(param, twin) and mine.keys() == theirs.keys()
        assert all(same_bits(mine[name], theirs[name]) for name in mine)
    return optimizer


@pytest.mark.filterwarnings("ignore:No weight of this optimizer")
@given(st.sampled_from(list(WAYS)), st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=6))
def test_who_takes_part_changes_nothing_for_the_others(way: str, steps: list[set[int]]) -> None:
    """Also a weight whose first gradient comes late, or that never has one."""
    together_and_alone(way, 4, steps)


def test_more_sets_of_weights_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As experts have gradients: another set in each step, and those of before come again."""
    monkeypatch.setattr(lineup, "_MOST", 10)
    subsets = [set(s) for n in range(1, 6) for s in itertools.combinations(range(5), n)]
    assert len(subsets) > 3 * lineup._MOST
    optimizer = together_and_alone("momentum", 5, subsets + subsets[::-1])
    assert 0 < len(optimizer._slots._lineups) <= 10


def test_a_lineup_is_made_once_for_a_set() -> None:
    params, optimizer = made("momentum")
    slots = slots_of(optimizer)
    set_gradients(params, 1)
    everyone = slots.taking_part()
    params[1].grad = None
    some = slots.taking_part()
    assert some.members == {0, 2} and everyone.members == {0, 1, 2}
    assert slots.taking_part() is some
    assert slots.taking_part(beside=[2]).members == {0}
    set_gradients(params, 2)
    assert slots.taking_part() is everyone
    assert not everyone.copies and len(some.copies) == 1


def test_nobody_has_state_before_a_gradient() -> None:
    params, optimizer = made("momentum")
    set_gradients(params[:1], 1)
    optimizer.step()
    assert [bool(state_of(optimizer, param)) for param in params] == [True, False, False]
    set_gradients(params, 2)
    optimizer.step()
    counts = [float(state_of(optimizer, param)["step"]) for param in params]
    assert counts == [2, 1, 1]


# --- what is noticed ----------------------------------------------------------------------


@each_way
def test_a_state_tensor_that_was_replaced_is_the_one_that_counts(way: str) -> None:
    """As by code that moves or reduces state; its bits go on, and it is an alias again."""
    params, optimizer = made(way)
    twins, other = copy.deepcopy((params, optimizer))
    run(optimizer, params, (1, 2))
    run(other, twins, (1, 2))
    for param in params:
        state = state_of(optimizer, param)
        for name in list(state):
            state[name] = state[name].clone()
    run(optimizer, params, (3, 4))
    run(other, twins, (3, 4))
    for param, twin in zip(params, twins, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert same_bits(param, twin)
        assert all(same_bits(mine[name], theirs[name]) for name in mine)
    state = state_of(optimizer, params[1])
    state["step"] = torch.tensor(10.0)
    run(optimizer, params, (5,))
    counts = [float(state_of(optimizer, param)["step"]) for param in params]
    assert counts == [5, 11, 5]


def test_an_anchor_that_was_replaced_bounds_from_the_next_step_on() -> None:
    params, optimizer = made("rows")
    run(optimizer, params, (1,))
    state = state_of(optimizer, params[0])
    state["anchor_norm"] = 0.5 * state["anchor_norm"]
    run(optimizer, params, (2,))
    norms, largest = params[0].detach().norm(dim=1), 1.05 * state["anchor_norm"].abs()
    assert (norms <= largest * (1 + 1e-5)).all()
    grown = state["anchor_norm"] > 0  # the others are placeholders, and shorter
    torch.testing.assert_close(norms[grown], largest[grown], rtol=1e-5, atol=0)


@each_way
def test_a_momentum_that_was_replaced_is_followed(way: str) -> None:
    params, optimizer = made(way)
    run(optimizer, params, (1, 2))
    names = [name for name in state_of(optimizer, params[0]) if "moment" in name]
    assert bool(names) == (way != "fromage")
    for name in names:
        state_of(optimizer, params[0])[name] = torch.zeros_like(params[0])
    set_gradients(params, 3)
    optimizer.step()
    for name in names:
        kept, grad = state_of(optimizer, params[0])[name], params[0].grad
        expected = 0.1 * grad if name == "momentum" else 0.001 * grad.square()
        torch.testing.assert_close(kept, expected)


@each_way
@pytest.mark.parametrize("emptied", ["all", "one", "by weight"])
def test_state_that_was_emptied_begins_anew(way: str, emptied: str) -> None:
    params, optimizer = made(way)
    run(optimizer, params, (1, 2))
    if emptied == "all":
        optimizer.state.clear()
    elif emptied == "one":
        optimizer.state.pop(params[0])
    else:
        state_of(optimizer, params[0]).clear()
    twin, other = alone(way, params[0])
    run(optimizer, params, (3, 4))
    run(other, [twin], (3, 4))
    mine, theirs = state_of(optimizer, params[0]), state_of(other, twin)
    assert same_bits(params[0], twin) and mine.keys() == theirs.keys()
    assert all(same_bits(mine[name], theirs[name]) for name in mine)
    assert float(state_of(optimizer, params[1])["step"]) == (2 if emptied == "all" else 4)


@each_way
def test_data_that_was_replaced_is_stepped_in_its_place(way: str) -> None:
    params, optimizer = made(way)
    twins, other = copy.deepcopy((params, optimizer))
    run(optimizer, params, (1, 2))
    run(other, twins, (1, 2))
    old = params[0].data
    before, params[0].data = old.clone(), old.clone()
    run(optimizer, params, (3,))
    run(other, twins, (3,))
    assert same_bits(old, before), "the old tensor was stepped"
    assert all(map(same_bits, params, twins))


@each_way
def test_a_model_may_change_its_dtype_between_steps(way: str) -> None:
    params, optimizer = made(way)
    run(optimizer, params, (1, 2))
    anchors = snapshot(state_of(optimizer, param)["anchor_norm"] for param in params)
    for param in params:
        param.data, param.grad = param.data.bfloat16(), None
    fresh = [nn.Parameter(weight) for weight in snapshot(params)]
    other = Fromage(fresh, lr=0.05, **WAYS[way])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, (3, 4))
    run(other, fresh, (3, 4))
    assert {param.dtype for param in params} == {torch.bfloat16}
    assert all(map(same_bits, params, fresh))
    for param, anchor in zip(params, anchors, strict=True):
        state = state_of(optimizer, param)
        assert same_bits(state["anchor_norm"], anchor) and float(state["step"]) == 4
        assert {value.dtype for value in state.values()} == {torch.float32}


@each_way
def test_a_weight_that_was_put_in_the_place_of_another_is_trained(way: str) -> None:
    """As Accelerate does for FSDP2, by assignment and in the list."""
    params, optimizer = made(way)
    run(optimizer, params, (1,))
    others = [nn.Parameter(gradient(torch.empty(4, 3), 20 + n, 0.1)) for n in range(3)]
    optimizer.param_groups[0]["params"][1] = others[1]
    twin, alone_ = alone(way, others[1])
    before = params[1].detach().clone()
    mixed = [params[0], others[1], params[2]]
    for number in (2, 3):
        run(optimizer, mixed, (number,))
        twin.grad = others[1].grad.clone()
        alone_.step()
    assert same_bits(others[1], twin) and same_bits(params[1], before)
    assert float(state_of(optimizer, params[0])["step"]) == 3
    optimizer.param_groups[0]["params"] = others
    run(optimizer, others, (4,))
    assert [float(state_of(optimizer, param)["step"]) for param in others] == [1, 3, 1]


def test_weights_in_another_order_keep_their_state() -> None:
    params, optimizer = made("momentum")
    twins, other = copy.deepcopy((params, optimizer))
    run(optimizer, params, (1, 2))
    run(other, twins, (1, 2))
    optimizer.param_groups[0]["params"].reverse()
    run(optimizer, params, (3,))
    run(other, twins, (3,))
    assert all(map(same_bits, params, twins))


@each_way
def test_a_dict_that_was_put_in_the_place_of_a_weight_s_state_is_the_one_that_counts(
    way: str,
) -> None:
    """``optimizer.state[param] = {...}``: else a checkpoint holds the state of that moment."""
    params, optimizer = made(way)
    twins, other = copy.deepcopy((params, optimizer))
    run(optimizer, params, (1, 2))
    run(other, twins, (1, 2))
    for param in params:
        own = {name: value.clone() for name, value in state_of(optimizer, param).items()}
        optimizer.state[param] = own
    run(optimizer, params, (3,))
    run(other, twins, (3,))
    for param, twin in zip(params, twins, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert all(same_bits(mine[name], theirs[name]) for name in mine)


@pytest.mark.filterwarnings("ignore:No weight of this optimizer")
@each_way
def test_a_mapping_that_was_put_in_the_place_of_all_state_begins_anew(way: str) -> None:
    """``optimizer.state = defaultdict(dict)``, by which many reset an optimizer."""
    params, optimizer = made(way)
    run(optimizer, params, (1, 2))
    optimizer.state = defaultdict(dict)
    run(optimizer, params, (3,))
    assert [float(state_of(optimizer, p)["step"]) for p in params] == [1, 1, 1]


@pytest.mark.parametrize("which", ["list", "group"])
@each_way
def test_groups_that_were_put_in_the_place_of_others_say_how_fast(way: str, which: str) -> None:
    params, optimizer = made(way)
    twins, other = copy.deepcopy((params, optimizer))
    run(optimizer, params, (1, 2))
    run(other, twins, (1, 2))
    if which == "list":
        optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    else:
        optimizer.param_groups[0] = dict(optimizer.param_groups[0])
    for each in (optimizer, other):
        each.param_groups[0]["lr"] = 0.2
    run(optimizer, params, (3,))
    run(other, twins, (3,))
    assert all(map(same_bits, params, twins))


def test_nothing_is_made_anew_where_nothing_has_changed() -> None:
    params, optimizer = made("momentum")
    run(optimizer, params, (1, 2))
    slots = optimizer._slots
    for number in (3, 4):
        optimizer.param_groups[0]["lr"] = 0.01 * number
        run(optimizer, params, (number,))
    assert optimizer._slots is slots and slots.are_current(optimizer.param_groups, optimizer.state)


# --- anchors ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Fromage, Madam])
def test_anchors_are_known_once_they_are_made(kind: Callable[..., Any]) -> None:
    """A weight whose first gradient is no number has none yet, and one that started at zero is."""
    params = weights(torch.float32)
    optimizer = kind(params)
    set_gradients(params, 1)
    params[0].grad[0, 0] = float("nan")
    optimizer.step()
    slots = optimizer._slots
    (bundle,) = slots.taking_part().bundles
    assert not slots.are_anchored(bundle)
    assert slots._unanchored == {0} and slots._from_zero == {2}
    run(optimizer, params, (2,))
    assert slots.are_anchored(bundle) and slots.may_start_at_zero(bundle)
    (dense, zero) = (bundle.only(0, 1), bundle.only(2, 3))
    assert not slots.may_start_at_zero(dense) and slots.may_start_at_zero(zero)


def test_a_schedule_of_the_momentum_keeps_what_is_known_of_anchors() -> None:
    """Another momentum in each step is another method, and other slots: with the same anchors."""
    params, optimizer = made("momentum")
    run(optimizer, params, (1,))
    anchors = snapshot(state_of(optimizer, param)["anchor_norm"] for param in params)
    for number in range(2, 6):
        before = optimizer._slots
        optimizer.param_groups[0]["momentum"] = 0.5 + 0.05 * number
        run(optimizer, params, (number,))
        assert optimizer._slots is not before and not optimizer._slots._unanchored
        for param, anchor in zip(params, anchors, strict=True):
            assert same_bits(state_of(optimizer, param)["anchor_norm"], anchor)
    assert [float(state_of(optimizer, param)["step"]) for param in params] == [5, 5, 5]


# --- what pays in long runs ---------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends of all updates; a compilation has paid after three steps of twelve entries."""
    used: list[str] = []

    def watching(name: str, own: backend.Backend) -> backend.Backend:
        def update(*given):  # type: ignore[no-untyped-def]
            used.append(name)
            own.update(*given)

        def step_alone(work):  # type: ignore[no-untyped-def]
            used.append(name)
            return own.step_alone(work)

        alone = step_alone if own.step_alone is not None else None
        return replace(own, update=update, step_alone=alone)

    each = {name: watching(name, own) for name, own in backend.BACKENDS.items()}
    monkeypatch.setattr(backend, "BACKENDS", each)
    monkeypatch.setattr(backend, "compiles", lambda: True)
    monkeypatch.setattr(numbers, "PAID", 3 * 12)
    return used


def test_a_long_run_on_a_cpu_is_compiled_once_it_has_paid(watched: list[str]) -> None:
    params, optimizer = made("fromage", count=1)
    run(optimizer, params, (1, 2, 3, 4, 5))
    assert watched == ["foreach"] * 3 + ["compiled"] * 2


@pytest.mark.parametrize("options", [{"backend": "foreach"}, {"direction": "momentum"}], ids=str)
def test_other_backends_and_directions_stay_as_they_are(
    options: dict[str, Any], watched: list[str]
) -> None:
    params = [nn.Parameter(torch.rand(4, 3))]
    run(Fromage(params, **options), params, (1, 2, 3, 4, 5))
    assert set(watched) == {"foreach"}


def test_a_small_model_is_not_asked(watched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "PAID", 2**33)
    params, optimizer = made("fromage", count=1)
    (each,) = Slots(optimizer.param_groups, optimizer.state)._numbers
    assert not each.may_pay
    run(optimizer, params, (1, 2, 3, 4, 5))
    assert set(watched) == {"foreach"}


def test_a_resumed_run_changes_over_where_the_other_did(watched: list[str]) -> None:
    ends = []
    for stop in (5, 2):
        params, optimizer = made("fromage", count=1)
        run(optimizer, params, range(1, stop + 1))
        if stop < 5:
            state = copy.deepcopy(optimizer.state_dict())
            params = [nn.Parameter(param.detach().clone()) for param in params]
            optimizer = Fromage(params, lr=0.05)
            optimizer.load_state_dict(state)
            run(optimizer, params, range(stop + 1, 6))
        ends.append(params[0])
    assert watched == (["foreach"] * 3 + ["compiled"] * 2) * 2
    assert same_bits(*ends)


def test_without_a_compiler_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(numbers, "PAID", 12)
    monkeypatch.setattr(backend.compiled, "fault", lambda: "InvalidCxxCompiler: no g++")
    backend.compiles.cache_clear()
    try:
        params, optimizer = made("fromage", count=1)
        with caplog.at_level("WARNING", "hf_relopt"):
            run(optimizer, params, (1, 2, 3))
        (line,) = caplog.messages
        assert "no g++" in line and "C++ compiler" in line
    finally:
        backend.compiles.cache_clear()
