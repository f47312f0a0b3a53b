"""Other code beside a step: what it does to state, groups and tensors is noticed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.backends import compiled
from tests.tensors import gradient, same_bits, state_of

WAYS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "fromage": lambda params: Fromage(params, lr=0.1, p_bound=1.0),
    "madam": lambda params: Madam(params, lr=0.1),
    "momentum": lambda params: Fromage(params, lr=0.1, direction="momentum"),
    "rows": lambda params: Fromage(params, lr=0.1, direction="momentum", scale="row"),
    "spectral": lambda params: Fromage(params, lr=0.1, direction="spectral"),
}
each_way = pytest.mark.parametrize("way", WAYS)


def tensors(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    shapes = ((8, 6), (5,), (4, 4))
    made = [gradient(torch.empty(s, dtype=dtype), n, 0.1) for n, s in enumerate(shapes)]
    return [nn.Parameter(tensor) for tensor in made]


def step(optimizer: Any, params: list[nn.Parameter], number: int, *, without: int = -1) -> None:
    for place, param in enumerate(params):
        param.grad = None if place == without else gradient(param, 10 * number + place)
    optimizer.step()


def test_bundles_that_round_differently_are_decided_apart() -> None:
    """They have one formula but for the noise."""
    ends = []
    for together in (True, False):
        a, b, _ = tensors(torch.bfloat16)
        groups = [{"params": [a], "rounding": "nearest"}, {"params": [b.view(5, 1).repeat(1, 3)]}]
        groups[1]["params"] = [nn.Parameter(groups[1]["params"][0].detach())]
        params = [groups[0]["params"][0], groups[1]["params"][0]]
        if together:
            optimizers = [Fromage(groups, lr=0.01, direction="momentum", seed=3)]
        else:
            frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
            # The noise goes by a weight's number in the optimizer.
            optimizers = [
                Fromage(groups[:1], lr=0.01, direction="momentum", seed=3),
                Fromage([{"params": [frozen]}, groups[1]], lr=0.01, direction="momentum", seed=3),
            ]
        for number in range(4):
            for place, param in enumerate(params):
                param.grad = gradient(param, 10 * number + place)
            for optimizer in optimizers:
                optimizer.step()
        ends.append(params)
    assert all(map(same_bits, *ends))


@each_way
@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("late", [0, 1])
def test_weights_of_two_dtypes_step_as_each_alone(way: str, zero: int, late: int) -> None:
    """Decided together, whichever of them started at zero or had its first gradient later."""
    dtypes = (torch.float32, torch.bfloat16)
    ends = []
    for together in (True, False):
        params = [nn.Parameter(gradient(torch.empty(8, 6, dtype=d), 1, 0.1)) for d in dtypes]
        with torch.no_grad():
            params[zero].zero_()
        optimizers = [WAYS[way](some) for some in ([params] if together else [[p] for p in params])]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["rounding"] = "nearest"  # noise goes by a weight's number
        for number in range(4):
            for place, param in enumerate(params):
                without = number == 0 and place == late
                param.grad = None if without else gradient(param, 10 * number + place)
            for optimizer in optimizers:
                if any(param.grad is not None for param in optimizer.param_groups[0]["params"]):
                    optimizer.step()
        ends.append(params)
    assert all(map(same_bits, *ends))


@each_way
def test_weights_and_moments_die_with_the_optimizer(way: str) -> None:
    seen = []
    for _ in range(3):
        params = tensors()
        optimizer = WAYS[way](params)
        step(optimizer, params, 1)
        step(optimizer, params, 2, without=0)
        held = [*params, *(v for param in params for v in state_of(optimizer, param).values())]
        seen += list(map(weakref.ref, held))
        del params, optimizer, held
    gc.collect()
    assert not [ref for ref in seen if ref() is not None]


@each_way
def test_gradients_are_not_kept_after_a_step(way: str) -> None:
    params = tensors()
    optimizer = WAYS[way](params)
    step(optimizer, params, 1)
    grads = [weakref.ref(param.grad) for param in params]
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    assert not [ref for ref in grads if ref() is not None]


@pytest.fixture
def default_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@each_way
@pytest.mark.parametrize(
    "default_dtype", [torch.float64, torch.bfloat16], indirect=True, ids=["float64", "bfloat16"]
)
def test_the_default_dtype_is_none_of_ours(way: str, default_dtype: None) -> None:
    params = tensors(torch.float32)
    optimizer = WAYS[way](params)
    step(optimizer, params, 1)
    assert state_of(optimizer, params[0])["anchor_norm"].dtype is torch.float32
    optimizer.load_state_dict(optimizer.state_dict())
    step(optimizer, params, 2)


@each_way
def test_state_that_is_moved_behind_its_tensors_goes_on(way: str) -> None:
    """``v.data = v.data.to(device)``, as helpers do that move an optimizer."""
    params, twins = tensors(), tensors()
    optimizer, other = WAYS[way](params), WAYS[way](twins)
    for number in range(4):
        step(optimizer, params, number)
        step(other, twins, number)
        for state in optimizer.state.values():
            for value in state.values():
                value.data = value.data.clone()
    for param, twin in zip(params, twins, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert same_bits(param, twin) and float(mine["step"]) == 4
        assert all(same_bits(mine[name], theirs[name]) for name in mine)


@each_way
def test_a_step_inside_inference_mode_leaves_later_ones_alone(way: str) -> None:
    params, twins = tensors(), tensors()
    optimizer, other = WAYS[way](params), WAYS[way](twins)
    for number in range(5):
        step(other, twins, number, without=number % 3)
        if number != 2:
            step(optimizer, params, number, without=number % 3)
            continue
        for place, param in enumerate(params):
            param.grad = None if place == 2 else gradient(param, 10 * number + place)
        with torch.inference_mode():
            optimizer.step()
    assert all(map(same_bits, params, twins))


def test_an_anchor_that_is_written_to_counts_in_the_next_step() -> None:
    """The host has read that it was made, and that it is not zero."""
    params = tensors()
    optimizer = Madam(params, lr=0.1)
    step(optimizer, params, 1)
    with torch.no_grad():
        params[0].zero_()
    for value in state_of(optimizer, params[0]).values():
        value.zero_()
    step(optimizer, params, 2)
    assert float(params[0].detach().norm()) > 0, "a tensor that started at zero moves"

    params = tensors()
    optimizer = Fromage(params, lr=0.1, p_bound=1.0)
    step(optimizer, params, 1)
    state_of(optimizer, params[0])["anchor_norm"].fill_(float("nan"))
    before = float(torch.linalg.vector_norm(params[0].detach()))
    step(optimizer, params, 2)
    assert state_of(optimizer, params[0])["anchor_norm"].tolist() == pytest.approx([before])


@pytest.mark.parametrize("way", ["madam", "rows"])
def test_what_is_at_its_bound_is_seen_in_a_step_that_makes_anchors_of_some(way: str) -> None:
    torch.manual_seed(0)
    weight, absent = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(5, 5))
    optimizer: Any = (
        Madam([weight, absent], lr=0.1, p_scale=0.5)
        if way == "madam"
        else Fromage([weight, absent], lr=0.1, direction="momentum", scale="row", p_bound=0.9)
    )
    weight.grad = torch.randn(8, 6)
    optimizer.measure_next_step()
    optimizer.step()
    assert optimizer.take_measurement()["at_bound"] > 0.5


def test_a_weight_without_rows_is_measured_as_nothing() -> None:
    """Ranks that have none of a weight's rows add up with the others."""
    weight = nn.Parameter(torch.zeros(0, 4, 5))
    optimizer = Fromage([weight], direction="momentum", scale="row")
    weight.grad = torch.zeros_like(weight)
    optimizer.measure_next_step()
    optimizer.step()
    assert optimizer.take_measurement()["changed_entries"] == 0


def test_madam_sums_weights_for_its_anchor_alone_under_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    original = compiled._whole_kernel

    def spied(decide: Any, what: str, *rest: Any) -> Any:
        asked.append(what)
        return original(decide, what, *rest)

    monkeypatch.setattr(compiled, "_whole_kernel", spied)
    params = tensors()
    optimizer = Madam(params, backend="compiled")
    for number in range(3):
        step(optimizer, params, number)
    assert asked == ["norms", "grad", "grad"]


def test_a_momentum_schedule_is_no_change_that_is_checked_against_the_weights() -> None:
    params = tensors()[:1]
    optimizer = Fromage(params, direction="momentum", bound="sphere", momentum=0.9)
    step(optimizer, params, 1)
    with torch.no_grad():
        params[0].zero_()
    optimizer.param_groups[0]["momentum"] = 0.8
    step(optimizer, params, 2)


def test_groups_in_another_order_keep_what_is_known_of_their_weights() -> None:
    """A weight that started at zero stays one, whatever its number is now."""
    ends = []
    for reverse in (False, True):
        drawn = [gradient(torch.empty(4, 4), n, 0.1) for n in range(2)]
        drawn[0].zero_()
        params = list(map(nn.Parameter, drawn))
        optimizer = Madam([{"params": params[:1], "beta": 0.9}, {"params": params[1:]}], lr=0.1)
        for number in range(4):
            if reverse and number == 2:
                optimizer.param_groups.reverse()
            step(optimizer, params, number)
        ends.append(params)
    assert all(map(same_bits, *ends))
