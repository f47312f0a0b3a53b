"""Other libraries around the optimizer: their keys, their wrappers, their order of doing things."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hf_relopt import Fromage, Madam
from tests.cases import CASES, Case
from tests.tensors import run, same_bits, start, weights

# Keys that schedulers, trainers and layer-wise settings of other libraries put into groups.
FOREIGN = [
    "lr_scale",
    "wd_scale",
    "lr_mult",
    "lr_multiplier",
    "decay_mult",
    "max_momentum",
    "base_momentum",
    "layer_decay",
    "layer_id",
    "initial_lr",
    "initial_momentum",
    "max_lr",
    "min_lr",
    "base_lr",
    "swa_lr",
    "warmup_steps",
    "wd_mult",
    "no_decay",
    "is_expert",
    "name",
    "group_name",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "r",
    "k",
    "meta",
    "decoupled_weight_decay",
    "use_muon",
    "scheduled_lr",
    "train_mode",
    "weight_sum",
    "lr_max",
    "lr_ratio",
    "decay",
    "momentum_warmup",
    "param_names",
    "group_lr",
    "lora_plus",
    "adamw_lr",
    "use_scale",
    "param_scale",
    "block_size",
]


@pytest.mark.parametrize("key", FOREIGN)
@pytest.mark.parametrize("kind", [Fromage, Madam])
def test_a_key_of_somebody_else_is_carried_along(key: str, kind: Any) -> None:
    params, expected = weights(torch.float32), weights(torch.float32)
    names = ["a", "b", "c"] if key == "param_names" else 0.5
    if key == "param_names":
        params_given: Any = list(zip(names, params, strict=True))  # type: ignore[arg-type]
        optimizer = kind(params_given)
    else:
        optimizer = kind([{"params": params, key: names}])
    run(optimizer, params, (1, 2))
    run(kind(expected), expected, (1, 2))
    assert all(map(same_bits, params, expected))
    assert optimizer.param_groups[0][key] == names
    other = kind(weights(torch.float32))
    if key != "param_names":
        other.load_state_dict(optimizer.state_dict())
        assert other.param_groups[0][key] == names


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_state_that_somebody_else_keeps_changes_nothing(case: Case) -> None:
    """Schedule-free wrappers and moving averages put a copy of the weights there, first of all."""
    params, optimizer = start(case, "foreach", torch.float32)
    others, other = start(case, "foreach", torch.float32)
    for param in others:
        other.state[param]["z"] = param.detach().clone()
        other.state[param]["note"] = "theirs"
    run(optimizer, params, (1, 2))
    other.measure_next_step()
    run(other, others, (1, 2))
    assert all(map(same_bits, params, others))
    assert other.take_measurement() is not None
    for param in others:
        assert set(other.state[param]) == set(optimizer.state[params[0]]) | {"z", "note"}
    fresh, again = start(case, "foreach", torch.float32)
    with torch.no_grad():
        for param, weight in zip(fresh, others, strict=True):
            param.copy_(weight)
    again.load_state_dict(copy.deepcopy(other.state_dict()))
    run(optimizer, params, (3,))
    run(again, fresh, (3,))
    assert all(map(same_bits, params, fresh))
    assert again.state[fresh[0]]["note"] == "theirs"


def test_a_state_with_theirs_alone_loads() -> None:
    """A wrapper that has prepared its own state, saved before the first step."""
    params = weights(torch.float32)
    optimizer = Fromage(params)
    for param in params:
        optimizer.state[param]["z"] = param.detach().clone()
    other = Fromage(weights(torch.float32))
    other.load_state_dict(optimizer.state_dict())
    fresh = other.param_groups[0]["params"]
    run(optimizer, params, (1,))
    run(other, fresh, (1,))
    assert all(map(same_bits, params, fresh))


# --- groups that come later -----------------------------------------------------------------


@pytest.mark.parametrize("first_named", [True, False])
def test_groups_with_and_without_names_go_together(first_named: bool) -> None:
    params, expected = weights(torch.float32), weights(torch.float32)
    named = [("a", params[0]), ("b", params[1])]
    optimizer = Fromage(named if first_named else params[:2])
    optimizer.add_param_group({"params": [params[2] if first_named else ("c", params[2])]})
    other = Fromage(expected[:2])
    other.add_param_group({"params": [expected[2]]})
    run(optimizer, params, (1, 2))
    run(other, expected, (1, 2))
    assert all(map(same_bits, params, expected))
    if first_named:
        first, later = (group["param_names"] for group in optimizer.param_groups)
        assert first == ["a", "b"] and len(set(later) - set(first)) == 1


def test_two_unnamed_groups_added_to_named_ones_have_names_of_their_own() -> None:
    a, b, c = weights(torch.float32)
    optimizer = Madam([("a", a)])
    optimizer.add_param_group({"params": [b]})
    optimizer.add_param_group({"params": [c]})
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert len(set(names)) == 3


# --- modules whose weights have no shape yet ------------------------------------------------
