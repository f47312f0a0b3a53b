"""Options that are changed in ``param_groups`` are checked before the next step moves anything."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage, Madam, create_optimizer
from hf_relopt.optim import changes
from tests.refusals import refused
from tests.tensors import run, same_bits, set_gradients, snapshot, weights

ADAMW = {"rule": "adamw", "lr": 1e-3}


def started(kind: Any, **options: Any) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    params = weights(torch.float32)
    optimizer = kind([{"params": params, **options}])
    run(optimizer, params, (1, 2))
    return params, optimizer


@pytest.mark.parametrize(("kind", "options", "name", "value", "words"), [
    (Fromage, {}, "weight_decay", 0.04, ("0.04", "p_bound")),
    (Madam, {}, "weight_decay", 0.04, ("0.04", "p_scale")),
    (Fromage, {}, "p_bound", -1.0, ("-1.0", "> 0")),
    (Fromage, {}, "p_bound", "2.0", ("'2.0'",)),
    (Fromage, {}, "lr_factor", -3, ("-3", "lr_factor <= 100")),
    (Fromage, {}, "lr_factor", 500, ("500",)),
    (Fromage, {}, "min_scale", math.nan, ("nan",)),
    (Fromage, {}, "maximize", "no", ("'no'", "True or False")),
    (Fromage, {}, "seed", 0.5, ("0.5", "integer")),
    (Fromage, {}, "rounding", "up", ("'up'", "nearest")),
    (Fromage, {}, "backend", "fused", ("'fused'", "foreach")),
    (Fromage, {}, "p_bond", 2.0, ("p_bond", "p_bound")),
    (Fromage, {}, "g_bound", 2.0, ("g_bound", "madam")),
    (Fromage, {}, "rule", "nero", ("nero", "fromage")),
    (Fromage, {}, "direction", "up", ("'up'", "spectral")),
    (Fromage, {"direction": "momentum"}, "momentum", 1.0, ("1.0", "momentum < 1")),
    (Fromage, {"direction": "momentum"}, "p_bound", 50.0, ("50.0", "10")),
    (Fromage, {"direction": "momentum"}, "beta", 0.9, ("beta", "adam")),
    (Fromage, {"direction": "momentum"}, "bound", "cube", ("'cube'", "sphere")),
    (Madam, {}, "beta", 2, ("2", "beta < 1")),
    (Madam, {}, "p_scale", 0, ("p_scale",)),
    (Madam, {}, "g_bound", None, ("g_bound",)),
    (Fromage, ADAMW, "betas", (0.9, 1.0), ("betas",)),
    # What compares equal to the value that is there, or cannot be compared.
    (Fromage, {}, "seed", 0.0, ("0.0", "integer")),
    (Fromage, {}, "maximize", 0, ("True or False",)),
    (Fromage, {}, "maximize", torch.tensor(False), ("True or False",)),
    (Fromage, {}, "min_scale", torch.tensor(0.1), ("tensor(0.1", "a number")),
    (Fromage, {}, "p_bound", 10**400, ("p_bound",)),
    (Fromage, {}, "weight_decay", torch.zeros(2), ("p_bound",)),
    (Fromage, {}, "weight_decay", np.zeros(2), ("p_bound",)),
    (Fromage, {}, "direction", np.array(["a", "b"]), ("spectral",)),
    (Fromage, {}, "rule", ["fromage"], ("['fromage']", "madam")),
    (Fromage, {}, "lr", 10**400, ("0 <= lr < 1",)),
    (Fromage, {}, "lr", torch.tensor(0.1, device="meta"), ("0 <= lr < 1",)),
    (Fromage, ADAMW, "eps", 0, ("eps",)),
    (Fromage, ADAMW, "weight_decay", -1, ("weight_decay",)),
])  # fmt: skip
def test_a_bad_value_is_refused_before_anything_moves(
    kind: Any, options: dict[str, Any], name: str, value: object, words: tuple[str, ...]
) -> None:
    params, optimizer = started(kind, **options)
    optimizer.param_groups[0][name] = value
    set_gradients(params, 3)
    before = snapshot(params)
    refused(optimizer.step, name, *words)
    refused(optimizer.step, name, *words)  # and it stays refused
    assert all(map(same_bits, params, before))
    assert {float(state["step"]) for state in optimizer.state.values()} == {2}


@pytest.mark.parametrize("name", ["p_bound", "min_scale", "seed", "backend"])
def test_an_option_that_was_taken_away_is_refused(name: str) -> None:
    params, optimizer = started(Fromage)
    del optimizer.param_groups[0][name]
    set_gradients(params, 3)
    before = snapshot(params)
    refused(optimizer.step, name, "missing")
    assert all(map(same_bits, params, before))


@pytest.mark.parametrize(("options", "change"), [
    ({}, {"direction": "momentum"}),
    ({}, {"direction": "spectral"}),
    ({}, {"scale": "row"}),
    ({"direction": "momentum"}, {"direction": "adam"}),
    ({"direction": "momentum"}, {"momentum_dtype": "bfloat16"}),
    ({"direction": "momentum"}, {"scale": "block", "split_sizes": 2}),
])  # fmt: skip
def test_what_decides_the_state_stays_once_there_is_one(
    options: dict[str, Any], change: dict[str, Any]
) -> None:
    params, optimizer = started(Fromage, **options)
    optimizer.param_groups[0].update(change)
    set_gradients(params, 3)
    before = snapshot(params)
    refused(optimizer.step, "state", "new optimizer")
    assert all(map(same_bits, params, before))
    fresh = weights(torch.float32)
    other = Fromage([{"params": fresh, **options}])
    other.param_groups[0].update(change)  # before there is any state it is a setting like others
    run(other, fresh, (1,))
    expected = weights(torch.float32)
    run(Fromage([{"params": expected, **options, **change}]), expected, (1,))
    assert all(map(same_bits, fresh, expected))


def test_a_good_value_holds_from_the_next_step_on() -> None:
    params, optimizer = started(Fromage)
    optimizer.param_groups[0]["p_bound"] = 1e-3
    run(optimizer, params, (3,))
    for param in params[:2]:
        anchor = float(optimizer.state[param]["anchor_norm"])
        assert float(param.detach().norm()) == pytest.approx(1e-3 * anchor, rel=1e-4)


@pytest.mark.parametrize("lr", [
    torch.tensor([0.25]), torch.tensor([[0.25]]), np.float32(0.25), np.float64(0.25),
    np.array(0.25), torch.tensor(0.25, dtype=torch.bfloat16),
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("kind", [Fromage, Madam])
@pytest.mark.parametrize("when", ["built", "group", "changed"])
def test_a_rate_of_one_number_is_that_number(lr: Any, kind: Any, when: str) -> None:
    expected = weights(torch.float32)
    run(kind(expected, lr=0.25), expected, (1, 2))
    params = weights(torch.float32)
    if when == "changed":
        optimizer = kind(params)
        optimizer.param_groups[0]["lr"] = lr
    else:
        optimizer = kind(params, lr=lr) if when == "built" else kind([{"params": params, "lr": lr}])
    run(optimizer, params, (1, 2))
    assert all(map(same_bits, params, expected))


@pytest.mark.parametrize("name, value, same", [
    ("p_bound", np.float32(0.5), 0.5), ("seed", np.int64(3), 3), ("maximize", np.bool_(True), True),
    ("min_scale", np.float64(0.25), 0.25), ("lr_factor", np.int32(2), 2),
])  # fmt: skip
def test_numpy_s_scalars_are_numbers(name: str, value: Any, same: object) -> None:
    params, expected = weights(torch.float32), weights(torch.float32)
    built = Fromage(params, **{name: value})
    run(built, params, (1,))
    run(Fromage(expected, **{name: same}), expected, (1,))
    assert all(map(same_bits, params, expected))
    # As plain Python: what a checkpoint holds is read with weights_only.
    assert type(built.param_groups[0][name]) is type(same)


@pytest.mark.parametrize("number", [np.float64, np.float32, np.array])
def test_a_schedule_in_numpy_s_numbers_steps_and_is_saved(number: Any, tmp_path: Path) -> None:
    params, expected = weights(torch.float32), weights(torch.float32)
    optimizer = Fromage(params, lr=0.25, direction="momentum")
    other = Fromage(expected, lr=0.25, direction="momentum")
    for step in (1, 2):
        run(optimizer, params, (step,))
        run(other, expected, (step,))
        optimizer.param_groups[0].update(lr=number(0.125), momentum=number(0.5))
        other.param_groups[0].update(lr=0.125, momentum=0.5)
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        saved = torch.load(tmp_path / "state.pt", weights_only=True)
        assert type(saved["param_groups"][0]["lr"]) is float
    assert all(map(same_bits, params, expected))


@pytest.mark.parametrize("lr", [
    torch.tensor([0.25, 0.5]), torch.tensor([]), torch.tensor([1]), np.float32("nan"),
    np.array([0.25, 0.5]), np.float64(1.0),
], ids=repr)  # fmt: skip
def test_what_is_no_rate_is_refused_in_every_form(lr: Any) -> None:
    refused(lambda: Fromage(weights(torch.float32), lr=lr), "lr is", "0 <= lr < 1")
    params, optimizer = started(Fromage)
    optimizer.param_groups[0]["lr"] = lr
    set_gradients(params, 3)
    refused(optimizer.step, "lr is", "0 <= lr < 1")


def test_betas_as_json_leaves_them_do_what_a_tuple_does() -> None:
    for change in ("built", "changed"):
        params, expected = weights(torch.float32), weights(torch.float32)
        betas = [0.5, 0.75]
        options = {**ADAMW, "betas": betas} if change == "built" else ADAMW
        optimizer = Fromage([{"params": params, **options}], backend="compiled")
        if change == "changed":
            optimizer.param_groups[0]["betas"] = betas
        run(optimizer, params, (1, 2))
        other = Fromage([{"params": expected, **ADAMW, "betas": (0.5, 0.75)}], backend="compiled")
        run(other, expected, (1, 2))
        assert all(map(same_bits, params, expected))


def test_unchanged_options_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    params, optimizer = started(Fromage)
    monkeypatch.setattr(changes, "check_together", lambda *_: pytest.fail("looked at again"))
    run(optimizer, params, (3, 4))
    for group in optimizer.param_groups:
        group["lr"] = 0.003  # a schedule
    run(optimizer, params, (5,))


def test_a_weight_that_was_put_into_a_group_by_hand_is_refused() -> None:
    params, optimizer = started(Fromage)
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(2)))
    set_gradients(params, 3)
    with pytest.raises(ConfigError, match="add_param_group"):
        optimizer.step()
    optimizer.param_groups[0]["params"].pop()
    optimizer.param_groups[0]["params"].pop()
    with pytest.raises(ConfigError, match="new optimizer"):
        optimizer.step()


def test_groups_of_a_plan_are_checked_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = create_optimizer(model, "fromage_spectral")
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0  # as trainers leave it
    optimizer.step()
    optimizer.param_groups[-1]["nesterov"] = "yes"
    refused(optimizer.step, "nesterov", "'yes'")
