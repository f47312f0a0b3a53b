"""Groups: options, dtypes, devices and schedules of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.errors import ConfigError
from tests.cases import DEFAULTS, DTYPES, Case
from tests.tensors import (
    assert_close,
    gradient,
    run,
    same_bits,
    set_gradients,
    snapshot,
    start,
    weights,
)


def _name(value: object) -> str:
    if isinstance(value, Case):
        return value.name
    if callable(value):
        return value.__name__.removeprefix("law_")
    return str(value).removeprefix("torch.")


each_default = pytest.mark.parametrize("case", DEFAULTS, ids=_name)


each_backend = pytest.mark.parametrize("backend", ["foreach", "compiled"])


@pytest.mark.parametrize(
    ("backend", "dtypes"),
    [("foreach", DTYPES), ("compiled", (torch.float32, torch.float64))],
    ids=["foreach", "compiled"],
)
@each_default
def test_mixed_dtypes_in_one_group_go_as_each_alone(
    case: Case, backend: str, dtypes: tuple[torch.dtype, ...]
) -> None:
    options = {"rounding": "nearest"} if torch.bfloat16 in dtypes else {}

    def mixed() -> list[nn.Parameter]:
        return [nn.Parameter(weights(dtype)[0].detach()) for dtype in dtypes]

    together = mixed()
    optimizer = case.make(together, lr=0.05, backend=backend, **options)
    run(optimizer, together, (1, 2))
    for index, single in enumerate(mixed()):
        alone = case.make([single], lr=0.05, backend=backend, **options)
        for number in (1, 2):
            single.grad = gradient(single, 100 * number + index)
            alone.step()
        assert_close([together[index]], [single], single.dtype)


@each_backend
@each_default
def test_devices_in_one_group_are_stepped_apart(case: Case, backend: str) -> None:
    """torch's meta device is a second device on any machine: it refuses to meet another one."""
    ends = []
    for neighbour in ("cpu", "meta"):
        params = weights(torch.bfloat16)
        for param in params:
            param.grad = gradient(param, 1)
        far = nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16, device=neighbour))
        far.grad = torch.ones_like(far)
        optimizer = case.make([far, *params], backend=backend)
        optimizer.step()
        optimizer.step()
        assert all(value.device.type == neighbour for value in optimizer.state[far].values())
        ends.append(params)
    assert all(same_bits(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize(
    ("build", "option", "values"),
    [
        (Fromage, "p_bound", (None, 0.5)),
        (Fromage, "min_scale", (0.1, 1.0)),
        (Madam, "beta", (0.5, 0.999)),
        (Madam, "p_scale", (0.5, 3.0)),
        (Madam, "g_bound", (0.1, 10.0)),
        (Madam, "min_scale", (0.01, 1.0)),
        (Madam, "maximize", (False, True)),
        (Fromage, "maximize", (False, True)),
    ],
)
def test_options_hold_per_group(build, option: str, values: tuple) -> None:  # type: ignore[no-untyped-def]
    def ends(value: object) -> list[torch.Tensor]:
        params = weights(torch.float32)
        groups = [{"params": [p], option: value} for p in params]
        run(build(groups, lr=0.125), params, (1, 2, 3))
        return snapshot(params)

    def each(value: object) -> list[torch.Tensor]:
        params = weights(torch.float32)
        run(build(params, lr=0.125, **{option: value}), params, (1, 2, 3))
        return snapshot(params)

    results = []
    for value in values:
        by_group, by_default = ends(value), each(value)
        assert all(same_bits(a, b) for a, b in zip(by_group, by_default, strict=True))
        results.append(by_group)
    assert any(not same_bits(a, b) for a, b in zip(*results, strict=True)), "the option is dead"


@each_default
def test_schedules_of_transformers_steer(case: Case) -> None:
    transformers = pytest.importorskip("transformers")
    for name in ("linear", "cosine", "constant_with_warmup", "inverse_sqrt"):
        ends = []
        for lr in (0.125, torch.tensor(0.125)):
            params, optimizer = start(case, "foreach", torch.float32, lr=lr)
            schedule = transformers.get_scheduler(
                name, optimizer, num_warmup_steps=2, num_training_steps=5
            )
            used = []
            for number in range(1, 5):
                used.append(float(optimizer.param_groups[0]["lr"]))
                before = snapshot(params)
                run(optimizer, params, (number,))
                still = all(same_bits(a, b) for a, b in zip(params, before, strict=True))
                assert still is (used[-1] == 0.0)
                schedule.step()
            assert used[:3] == pytest.approx([0.0, 0.0625, 0.125])
            ends.append(params)
        assert_close(ends[1], ends[0], torch.float32)


@each_default
def test_a_group_list_is_not_shared_with_the_caller(case: Case) -> None:
    groups = [{"params": weights(torch.float32)[:1], "lr": 0.25}]
    optimizer = case.make(copy.copy(groups))
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(ConfigError):
        case.make([{"params": weights(torch.float32), "lr": -1.0}])


@each_default
def test_zero_grad_and_frozen_parameters(case: Case) -> None:
    params = weights(torch.float32)
    params[1].requires_grad_(False)
    optimizer = case.make(params)
    before = snapshot(params)
    sum((p**2).sum() + p.sum() for p in params).backward()
    optimizer.step()
    assert same_bits(params[1], before[1]) and not same_bits(params[0], before[0])
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    set_gradients([params[0]], 1)
    optimizer.zero_grad(set_to_none=False)
    assert not params[0].grad.any()
