"""Bounds of travel beside real optimizers: never below what the weights have moved."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam, create_optimizer
from hf_relopt.distance.travel import Travel
from hf_relopt.errors import ConfigError

KINDS: list[dict[str, Any]] = [
    {},
    {"p_bound": 1.0},
    {"p_bound": 0.7},
    {"bound": "sphere"},
    {"direction": "momentum"},
    {"direction": "momentum", "scale": "row"},
    {"direction": "spectral", "p_bound": 1.0},
    {"direction": "adam", "bound": "sphere"},
    {"direction": "gradient", "scale": "row", "p_bound": 2.0},
    {"direction": "spectral", "scale": "block", "split_sizes": 3, "split_dim": 0},
    {"direction": "momentum", "scale": "block", "split_sizes": (1, 7, 4), "bound": "sphere"},
    {"lr_factor": 3.0},
]


def weight(placeholders: bool = False) -> nn.Parameter:
    torch.manual_seed(1)
    drawn = torch.randn(12, 6)
    if placeholders:
        drawn[:2] *= 1e-3
        drawn[1] = 0
    return nn.Parameter(drawn)


def moved(param: torch.Tensor, start: torch.Tensor) -> float:
    return float((param.detach().double() - start.double()).norm() / start.double().norm())


@pytest.mark.parametrize("way", ["outwards", "aside"])
@pytest.mark.parametrize("placeholders", [False, True])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_no_weight_gets_beyond_its_bound(options, placeholders, way):
    param = weight(placeholders)
    start = param.detach().clone()
    optimizer = Fromage([("w", param)], lr=0.005, **options)
    travel = Travel(optimizer, {"w": param})
    assert travel.bounds() == {"w": 0.0}
    generator = torch.Generator().manual_seed(2)
    aside = torch.randn(param.shape, generator=generator)
    for step in range(25):
        towards = param.detach() if way == "outwards" else aside
        # With some noise, so that moments have something to do.
        param.grad = 0.1 * torch.randn(param.shape, generator=generator) - towards
        optimizer.param_groups[0]["lr"] = 0.005 * (step % 5)
        ahead = travel.bounds_after()["w"]
        optimizer.step()
        bound = travel.bounds()["w"]
        assert bound == ahead
        assert moved(param, start) <= bound
    if way == "aside":
        # It says something: weights that keep their direction get to a good part of it.
        assert moved(param, start) > (0.3 if not placeholders else 0.1) * bound


def test_a_walk_outwards_nearly_attains_the_bound():
    param = weight()
    start = param.detach().clone()
    optimizer = Fromage([("w", param)], lr=0.01)
    travel = Travel(optimizer, {"w": param})
    for _ in range(50):
        param.grad = -param.detach()
        optimizer.step()
    assert 0.97 * travel.bounds()["w"] < moved(param, start) <= travel.bounds()["w"]


def test_schedules_and_steps_that_are_left_out_count_as_they_are():
    param = weight()
    optimizer = Fromage([("w", param)], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    travel = Travel(optimizer, {"w": param})
    param.grad = torch.randn_like(param)
    optimizer.step()
    schedule.step()
    first = travel.bounds()["w"]
    assert travel.bounds_after()["w"] == first  # at a learning rate of 0
    optimizer.step()
    assert travel.bounds()["w"] == first
    travel.close()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert travel.bounds()["w"] == first


def test_each_role_has_its_own_rate():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 32), nn.Linear(32, 32, bias=False))
    own = {"embedding": {"direction": "momentum", "lr_factor": 0.5}}
    optimizer = create_optimizer(model, "fromage_spectral", lr=0.02, overrides=own)
    travel = Travel(optimizer, dict(model.named_parameters()))
    bounds = travel.bounds_after()
    factors = {
        n: g.get("lr_factor") or 1.0 for g in optimizer.param_groups for n in g["param_names"]
    }
    for name, bound in bounds.items():
        lr = 0.02 * factors[name]
        assert lr < bound < 1.02 * lr, name
    assert bounds["0.weight"] < bounds["1.weight"]


def test_state_goes_through_json_and_goes_on():
    param = weight(placeholders=True)
    optimizer = Fromage([("w", param)], lr=0.01, direction="momentum", scale="row")
    travel = Travel(optimizer, {"w": param})
    for _ in range(3):
        param.grad = torch.randn_like(param)
        optimizer.step()
    state = json.loads(json.dumps(travel.state()))
    other = weight(placeholders=True)
    again = Travel(
        Fromage([("w", other)], lr=0.01, direction="momentum", scale="row"), {"w": other}
    )
    again.load(state)
    assert again.bounds() == travel.bounds()
    with pytest.raises(ConfigError, match="no bound for w"):
        again.load({"v": state["w"]})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: Madam([("w", p)]), ("w follows madam", "initial=")),
        (lambda p: torch.optim.AdamW([p]), ("w follows AdamW", "initial=", "free=")),
        (lambda p: Fromage([{"params": [("w", p)], "rule": "adamw"}]), ("w follows adamw",)),
        (
            lambda p: Fromage([{"params": [("w", p)], "role": "vector", "direction": "adam"}]),
            ("entry by entry", "initial="),
        ),
        (lambda p: Fromage([("w", p)], direction="rms"), ("w follows direction 'rms'", "initial=")),
    ],
)
def test_rules_without_a_bound_are_refused(make, words):
    param = weight()
    with pytest.raises(ConfigError) as refused:
        Travel(make(param), {"w": param})
    for each in words:
        assert each in str(refused.value)


def test_low_precision_is_refused_since_its_rounding_moves_weights():
    param = nn.Parameter(weight().detach().bfloat16())
    with pytest.raises(ConfigError, match=r"w is bfloat16.*initial="):
        Travel(Fromage([("w", param)]), {"w": param})


def test_zero_weights_are_listed_and_those_of_no_optimizer_do_not_move():
    zero, other, own = nn.Parameter(torch.zeros(3, 3)), weight(), weight()
    optimizer = Fromage([("zero", zero), ("own", own)])
    travel = Travel(optimizer, {"zero": zero, "other": other, "own": own})
    assert travel.left_alone == ["zero"] and set(travel.bounds()) == {"own"}
