"""The laws of torch's interface: rates, schedules, closures, hooks, groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from hf_relopt.errors import ConfigError
from tests.cases import Case
from tests.contract import Law
from tests.tensors import (
    Optimizer,
    assert_close,
    assert_near_oracle,
    gradient,
    run,
    same_bits,
    set_gradients,
    snapshot,
    start,
    state_of,
    to_nearest,
    to_numpy,
    weights,
)


def law_tensor_lr_equals_float_lr(case: Case, backend: str, dtype: torch.dtype) -> None:
    ends = []
    for lr in (0.125, torch.tensor(0.125), torch.tensor(0.125, dtype=torch.float64)):
        params, optimizer = start(case, backend, dtype, lr=lr, **to_nearest(dtype))
        run(optimizer, params, (1, 2, 3))
        ends.append(snapshot(params))
        assert type(optimizer.param_groups[0]["lr"]) is type(lr)
        assert float(optimizer.param_groups[0]["lr"]) == 0.125
    for end in ends[1:]:
        assert_close(end, ends[0], dtype)


def law_lr_schedulers_steer(case: Case, backend: str, dtype: torch.dtype) -> None:
    makers: list[Callable[[Optimizer], Any]] = [
        lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 0.5**step),
        lambda opt: lr_scheduler.LinearLR(opt, 0.5, 1.0, total_iters=2),
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=3),
    ]
    for maker in makers:
        ends, last = [], []
        for lr in (0.125, torch.tensor(0.125)):
            params, optimizer = start(case, backend, dtype, lr=lr, **to_nearest(dtype))
            schedule, used = maker(optimizer), []
            for number in (1, 2, 3):
                used.append(float(optimizer.param_groups[0]["lr"]))
                run(optimizer, params, (number,))
                schedule.step()
            assert len(set(used)) > 1
            ends.append(snapshot(params))
            last.append(used)
        assert last[0] == pytest.approx(last[1], rel=1e-6)
        assert_close(ends[1], ends[0], dtype)
        for index, end in enumerate(ends[0]):
            grads = [to_numpy(gradient(end, 100 * n + index)) for n in (1, 2, 3)]
            path = case.path(to_numpy(weights(dtype)[index]), grads, last[0])
            assert_near_oracle(end, path.last, dtype, steps=3, slack=case.slack)


def law_closure_is_called_once_with_grad(case: Case, backend: str, dtype: torch.dtype) -> None:
    params, optimizer = start(case, backend, dtype)
    calls = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(((param - 0.25) ** 2).sum() for param in params)
        loss.backward()
        calls.append(loss)
        return loss

    before = snapshot(params)
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert len(calls) == 1 and loss is calls[0]
    assert not any(same_bits(a, b) for a, b in zip(params, before, strict=True) if a.any())
    assert optimizer.step() is None


def law_maximize_equals_negated_gradients(case: Case, backend: str, dtype: torch.dtype) -> None:
    ends = []
    for maximize, sign in ((False, 1.0), (True, -1.0)):
        params, optimizer = start(case, backend, dtype, maximize=maximize)
        for number in (1, 2, 3):
            set_gradients(params, number, sign)
            optimizer.step()
        ends.append(params)
    assert all(same_bits(a, b) for a, b in zip(*ends, strict=True))


def law_step_hooks_are_called(case: Case, backend: str, dtype: torch.dtype) -> None:
    params, optimizer = start(case, backend, dtype)
    seen: list[tuple[str, bool]] = []
    before = snapshot(params)

    def moved() -> bool:
        return not same_bits(params[0], before[0])

    optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append(("pre", moved())))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(("post", moved())))
    run(optimizer, params, (1,))
    assert seen == [("pre", False), ("post", True)]


def law_named_parameters_are_taken(case: Case, backend: str, dtype: torch.dtype) -> None:
    if not case.plain:
        return
    params, optimizer = start(case, backend, dtype)
    named = weights(dtype)
    other = case.make(list(zip("abc", named, strict=True)), backend=backend)
    assert other.param_groups[0]["param_names"] == ["a", "b", "c"]
    assert other.state_dict()["param_groups"][0]["param_names"] == ["a", "b", "c"]
    run(optimizer, params, (1, 2))
    run(other, named, (1, 2))
    assert all(same_bits(a, b) for a, b in zip(params, named, strict=True))


def law_a_group_added_later_trains(case: Case, backend: str, dtype: torch.dtype) -> None:
    if not case.plain:
        return
    params = weights(dtype)
    optimizer = case.make(params[:2], backend=backend)
    run(optimizer, params[:2], (1,))
    optimizer.add_param_group({"params": [params[2]], "lr": 0.25, "weight_decay": 0.0})
    before = snapshot(params)
    run(optimizer, params, (2,))
    moves = [not torch.equal(a, b) for a, b in zip(params, before, strict=True)]
    assert moves == [True, True, case.options.get("min_scale") != 0.0]
    assert float(state_of(optimizer, params[2])["step"]) == 1
    with pytest.raises(ConfigError, match="twice"):
        optimizer.add_param_group({"params": [params[0]]})
    assert len(optimizer.param_groups) == 2


def law_groups_have_their_own_lr(case: Case, backend: str, dtype: torch.dtype) -> None:
    if not case.plain:
        return
    params = weights(dtype)
    groups = [
        {"params": [params[0]], "lr": 0.25},
        {"params": [params[1]], "lr": torch.tensor(0.125)},
        {"params": [params[2]], "weight_decay": 0.0, "initial_lr": 0.5, "note": "mine"},
    ]
    optimizer = case.make(groups, lr=0.0625, backend=backend, **to_nearest(dtype))
    run(optimizer, params, (1,))
    for index, (param, lr) in enumerate(zip(params, (0.25, 0.125, 0.0625), strict=True)):
        grads = [to_numpy(gradient(param, 100 + index))]
        path = case.path(to_numpy(weights(dtype)[index]), grads, lr)
        assert_near_oracle(param, path.last, dtype, steps=1, slack=case.slack)
    foreign = {
        key: optimizer.param_groups[2][key] for key in ("weight_decay", "initial_lr", "note")
    }
    assert foreign == {"weight_decay": 0.0, "initial_lr": 0.5, "note": "mine"}
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert {key: optimizer.param_groups[2][key] for key in foreign} == foreign


def law_finite_stays_finite_and_follows_oracle(
    case: Case, backend: str, dtype: torch.dtype
) -> None:
    params, optimizer = start(case, backend, dtype, lr=2.0**-4, **to_nearest(dtype))
    run(optimizer, params, range(1, 5))
    for index, param in enumerate(params):
        grads = [to_numpy(gradient(param, 100 * n + index)) for n in range(1, 5)]
        path = case.path(to_numpy(weights(dtype)[index]), grads, 2.0**-4)
        assert torch.isfinite(param).all()
        assert_near_oracle(param, path.last, dtype, steps=4, slack=case.slack)
        state = state_of(optimizer, param)
        assert float(state["step"]) == path.step
        for name in case.moments:
            assert_near_oracle(state[name], path.moments[name], case.state_dtype(name), steps=4)


LAWS: tuple[Law, ...] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("law_")
)
