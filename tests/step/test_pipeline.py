"""The whole step: every direction, scale and bound against the oracle, and learning rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from hf_relopt.step.lineup import Slots
from hf_relopt.step.pipeline import _asked, _learning_rates
from tests.cases import BY_NAME, FROMAGE_STATE
from tests.frames import (
    BOUNDS,
    DIRECTIONS,
    NEW_KEYS,
    WHOLE,
    each_pair,
    frame_of,
    kinds_of_tensors,
    slack_of,
)
from tests.oracles import Path as Trajectory
from tests.oracles.frame import frame, is_vector
from tests.tensors import (
    Optimizer,
    assert_close,
    assert_near_oracle,
    gradient,
    run,
    same_bits,
    snapshot,
    state_of,
    to_numpy,
)


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")


def _eventful(param: nn.Parameter, index: int, number: int) -> torch.Tensor | None:
    """The gradient of a step: some rows never have one, and what should do nothing comes too."""
    grad = gradient(param, 100 * number + index)
    if param.dim() > 1 and len(param) > 2:
        grad[1] = 0.0
    if number == 3 and index % 2:
        return None
    if number == 4 and index != 1:
        return torch.zeros_like(grad)
    if number == 5 and index != 2:
        grad.view(-1)[-1] = float("nan")
    return grad


def _walk(optimizer: Optimizer, params: list[nn.Parameter], rates: list[float]) -> list[Trajectory]:
    """Step both the optimizer and the oracle; return the oracle's way of each tensor."""
    first = [to_numpy(param).copy() for param in params]
    grads: list[list[np.ndarray | None]] = [[] for _ in params]
    for number, lr in enumerate(rates, 1):
        for index, param in enumerate(params):
            param.grad = _eventful(param, index, number)
            grads[index].append(None if param.grad is None else to_numpy(param.grad).copy())
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    ways = {}
    for group in optimizer.param_groups:
        options = {name: group[name] for name in (*NEW_KEYS, "p_bound", "min_scale", "maximize")}
        ways.update({param: options for param in group["params"]})
    return [frame(first[i], grads[i], rates, **ways[param]) for i, param in enumerate(params)]


def _assert_follows(
    optimizer: Optimizer,
    params: list[nn.Parameter],
    paths: list[Trajectory],
    direction: str,
) -> None:
    for param, path in zip(params, paths, strict=True):
        steps, state = len(path.weights), state_of(optimizer, param)
        size = max(float(np.linalg.norm(weight)) for weight in path.weights)
        slack = 0.0 if is_vector(path.last) else slack_of(direction)
        assert_near_oracle(param, path.last, param.dtype, steps, slack, size)
        assert float(state["step"]) == path.step and float(state["skipped"]) == path.skipped
        assert state["anchor_norm"].tolist() == pytest.approx(list(path.anchor_norm), rel=1e-6)
        for name, moment in path.moments.items():
            assert_near_oracle(state[name], moment, torch.float32, steps)
        assert set(state) == FROMAGE_STATE | set(path.moments)


RATES = [0.05, 0.0, 0.2, 0.1, 0.1, 0.02, 0.1, 0.1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=_name)
@pytest.mark.parametrize("bound", BOUNDS)
@each_pair
def test_every_combination_follows_the_oracle(
    direction: str, scale: str, bound: str, dtype: torch.dtype
) -> None:
    params, groups = frame_of(dtype, direction, scale, **BOUNDS[bound])
    optimizer = Fromage(groups)
    _assert_follows(optimizer, params, _walk(optimizer, params, RATES), direction)


@each_pair
def test_the_default_bound_follows_the_oracle(direction: str, scale: str) -> None:
    """Nothing but direction and scale given: 3 for all but the paper's, which has none."""
    params, groups = frame_of(torch.float32, direction, scale, kinds=WHOLE)
    optimizer = Fromage(groups)
    _assert_follows(optimizer, params, _walk(optimizer, params, [0.5] * 8), direction)


@pytest.mark.parametrize(
    "options",
    [
        {"direction": "momentum", "momentum": 0.0},
        {"direction": "momentum", "momentum": 0.5, "nesterov": True},
        {"direction": "momentum", "nesterov": False, "maximize": True},
        {"direction": "spectral", "nesterov": False, "momentum": 0.8},
        {"direction": "spectral", "maximize": True, "min_scale": 0.0},
        {"direction": "adam", "momentum": 0.0, "beta": 0.0},
        {"direction": "adam", "momentum": 0.5, "beta": 0.9, "maximize": True},
        {"direction": "gradient", "scale": "row", "maximize": True, "min_scale": 1.0},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_options_follow_the_oracle(options: dict[str, Any]) -> None:
    tensors = kinds_of_tensors(torch.float32)
    params = [*tensors["matrices"], *tensors["experts"]]
    if options["direction"] != "gradient":
        params += tensors["vectors"]
    optimizer = Fromage(params, **options)
    paths = _walk(optimizer, params, RATES)
    _assert_follows(optimizer, params, paths, options["direction"])


@pytest.mark.parametrize(("split_dim", "split_sizes"), [(1, 2), (1, (1, 3)), (0, 3), (None, [6])])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_splits_follow_the_oracle(direction: str, split_dim: int | None, split_sizes: Any) -> None:
    params = kinds_of_tensors(torch.float32)["matrices"]
    options = {"scale": "block", "split_dim": split_dim, "split_sizes": split_sizes}
    optimizer = Fromage(params, direction=direction, **options)
    _assert_follows(optimizer, params, _walk(optimizer, params, RATES), direction)


@pytest.mark.parametrize("direction", ["momentum", "spectral"])
def test_compiled_follows_the_oracle(direction: str) -> None:
    params = kinds_of_tensors(torch.float32)["matrices"]
    optimizer = Fromage(params, direction=direction, backend="compiled")
    _assert_follows(optimizer, params, _walk(optimizer, params, RATES), direction)


def test_the_papers_rule_is_untouched() -> None:
    """Saying the defaults aloud is saying nothing."""
    ends = []
    for options in ({}, {"direction": "gradient", "scale": "tensor", "bound": None}):
        tensors = kinds_of_tensors(torch.bfloat16)
        params = [param for each in tensors.values() for param in each]
        run(Fromage(params, lr=0.1, p_bound=1.2, **options), params, (1, 2, 3))
        ends.append(params)
    assert all(same_bits(a, b) for a, b in zip(*ends, strict=True))


# --- state --------------------------------------------------------------------------------


@each_pair
def test_what_should_do_nothing_does_nothing(direction: str, scale: str) -> None:
    """The table, for vectors, experts, rows and blocks as for whole matrices."""
    params, groups = frame_of(torch.bfloat16, direction, scale)
    optimizer = Fromage(groups)
    first = snapshot(params)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param, old in zip(params, first, strict=True):
        state = state_of(optimizer, param)
        assert same_bits(param, old) and float(state["step"]) == 0
        assert not torch.isnan(state["anchor_norm"]).any()
        assert not any(state[name].any() for name in ("momentum", "second_moment") if name in state)
    run(optimizer, params, (1, 2))
    for kind in ("none", "zero", "nan"):
        before = [snapshot([p, *state_of(optimizer, p).values()]) for p in params]
        for param in params:
            grad = torch.zeros_like(param) if kind == "zero" else gradient(param, 3)
            grad.view(-1)[0] = float("nan") if kind == "nan" else grad.view(-1)[0]
            param.grad = None if kind == "none" else grad
        optimizer.step()
        for param, old in zip(params, before, strict=True):
            state = state_of(optimizer, param)
            now = dict(zip(("weight", *state), [param, *state.values()], strict=True))
            changed = {n for (n, a), b in zip(now.items(), old, strict=True) if not same_bits(a, b)}
            assert changed == ({"skipped"} if kind == "nan" else set())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = snapshot(params)
    counts = [float(state_of(optimizer, param)["step"]) for param in params]
    run(optimizer, params, (4,))
    for param, old, count in zip(params, before, counts, strict=True):
        assert same_bits(param, old) and float(state_of(optimizer, param)["step"]) == count + 1


@each_pair
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_group_may_follow_a_part_of_the_rate_or_more(
    kind: Callable[[float], Any], direction: str, scale: str
) -> None:
    """As if the rate were that, and a rate that is changed for all groups keeps it."""
    ends = []
    for lr, lr_factor in ((0.1, None), (0.2, 0.5), (0.025, 4.0)):
        params, groups = frame_of(torch.float32, direction, scale)
        optimizer = Fromage(groups, lr=kind(lr), lr_factor=lr_factor)
        run(optimizer, params, (1, 2))
        for group in optimizer.param_groups:
            group["lr"] = kind(lr / 4)
        run(optimizer, params, (3,))
        ends.append(params)
    for params in ends[1:]:
        assert_close(ends[0], params, torch.float32)


def test_groups_have_directions_of_their_own() -> None:
    """As a plan gives them: spectral matrices, embeddings by rows, a head by the paper's rule."""

    def made() -> list[nn.Parameter]:
        return [nn.Parameter(gradient(torch.empty(6, 4), n, 0.1)) for n in range(4)]

    ways = [
        {"direction": "spectral"},
        {"direction": "momentum", "scale": "row", "momentum": 0.9},
        {"direction": "gradient", "p_bound": 1.0},
        {"direction": "adam", "bound": "sphere", "beta": 0.95},
    ]
    together, alone = made(), made()
    groups = [{"params": [p], **way} for p, way in zip(together, ways, strict=True)]
    run(Fromage(groups, lr=0.1), together, (1, 2, 3))
    for index, (param, way) in enumerate(zip(alone, ways, strict=True)):
        optimizer = Fromage([param], lr=0.1, **way)
        for number in (1, 2, 3):
            param.grad = gradient(param, 100 * number + index)
            optimizer.step()
        assert_close([together[index]], [param], torch.float32)


# --- learning rates -----------------------------------------------------------------------

LRS = {
    "floats": [0.1, 0.25, 0.0, 0.03125],
    "tensors": [torch.tensor(0.1), torch.tensor(0.25), torch.tensor(0.0), torch.tensor(0.03125)],
    "float64": [torch.tensor(v, dtype=torch.float64) for v in (0.1, 0.25, 0.0, 0.03125)],
    "mixed": [torch.tensor(0.1), 0.3, torch.tensor([0.0]), 0.007],
}
FACTORS = (None, 0.5, 3.0, 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=_name)
@pytest.mark.parametrize("form", [form for form in LRS if form != "floats"])
@pytest.mark.parametrize("case", ["fromage", "madam", "fromage-momentum", "fromage-momentum-row"])
def test_learning_rates_as_tensors_step_as_floats_do(
    case: str, form: str, dtype: torch.dtype
) -> None:
    """To the bit, one for each group, changed in place or replaced, with factors of their own."""
    options = dict(BY_NAME[case].options)
    ends = []
    for each in (form, "floats"):
        params = [nn.Parameter(gradient(torch.empty(4, 3, dtype=dtype), n)) for n in range(8)]
        lrs = [lr.clone() if isinstance(lr, torch.Tensor) else lr for lr in LRS[each]]
        if each == "floats":  # what the tensors say, who may have fewer digits
            lrs = [float(lr) for lr in LRS[form]]
        groups = [
            {"params": params[2 * n : 2 * n + 2], "lr": lr, **options}
            | ({} if case == "madam" else {"lr_factor": FACTORS[n]})
            for n, lr in enumerate(lrs)
        ]
        optimizer = BY_NAME[case].build(groups)
        for number in range(1, 5):
            run(optimizer, params, (number,))
            group = optimizer.param_groups[number - 1]
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].mul_(0.5)
            else:
                group["lr"] = 0.5 * group["lr"]
        ends.append((params, optimizer))
    (params, optimizer), (others, other) = ends
    assert all(map(same_bits, params, others))
    for param, twin in zip(params, others, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert all(same_bits(mine[name], theirs[name]) for name in mine)
    start = [gradient(torch.empty(4, 3, dtype=dtype), n) for n in (4, 5)]
    assert all(map(same_bits, params[4:6], start)), "a learning rate of zero has moved something"


def test_a_rate_that_is_the_same_for_all_groups_is_one_number() -> None:
    params = [nn.Parameter(torch.ones(2, 2)) for _ in range(3)]
    optimizer = Fromage([{"params": [p]} for p in params], lr=0.1)
    (numbers,) = Slots(optimizer.param_groups, optimizer.state)._numbers
    lr, moves = _learning_rates(numbers)
    assert lr.shape == () and float(lr) == 0.1 and moves
    assert _learning_rates(numbers)[0] is lr, "made again though nothing has changed"
    optimizer.param_groups[1]["lr"] = 0.0
    lr, moves = _learning_rates(numbers)
    assert lr.tolist() == [0.1, 0.0, 0.1] and not moves
    optimizer.param_groups[1]["lr"] = torch.tensor(0.25)
    lr, moves = _learning_rates(numbers)
    assert lr.tolist() == [0.1, 0.25, 0.1] and not moves, "nobody has read the tensor"


# --- what is summed -----------------------------------------------------------------------


@pytest.mark.parametrize(("case", "first", "later"), [
    ("fromage", "norms", "norms"), ("fromage-p_bound-1", "cosine", "cosine"),
    ("madam", "norms", "grad"), ("adamw-groups", "grad", "grad"),
    ("fromage-momentum", "norms", "grad"), ("fromage-row", "norms", "grad"),
])  # fmt: skip
def test_of_the_gradients_no_more_is_summed_than_a_step_needs(
    case: str, first: str, later: str
) -> None:
    params = [nn.Parameter(gradient(torch.empty(4, 3), n)) for n in range(2)]
    optimizer = BY_NAME[case].make(params)
    for expected in (first, later, later):
        for param in params:
            param.grad = gradient(param, 1)
        slots = optimizer._slots or Slots(optimizer.param_groups, optimizer.state)
        assert {_asked(bundle, slots) for bundle in slots.taking_part().bundles} == {expected}
        optimizer.step()
