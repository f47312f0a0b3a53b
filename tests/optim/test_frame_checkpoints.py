"""Checkpoints of every direction and scale, and those of before there were any."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from hf_relopt.plans.directions import READ_BY
from tests.cases import BY_NAME
from tests.frames import NEW_KEYS, each_pair, frame_of, kinds_of_tensors
from tests.oracles.frame import is_vector
from tests.tensors import Optimizer, run, same_bits, snapshot, state_of, to_numpy


@each_pair
def test_resume_is_bit_equal(direction: str, scale: str, tmp_path: Path) -> None:
    """Vectors, experts and fused matrices; the momentum in bfloat16, weights too."""
    low = {"momentum_dtype": "bfloat16"} if direction in READ_BY["momentum_dtype"] else {}

    def built() -> tuple[list[nn.Parameter], Optimizer]:
        params, groups = frame_of(torch.bfloat16, direction, scale, **low)
        return params, Fromage(groups, lr=0.05, seed=3)

    params, optimizer = built()
    run(optimizer, params, (1, 2))
    saved = {"weights": snapshot(params), "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "checkpoint.pt")
    run(optimizer, params, (3, 4))
    fresh, other = built()
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    with torch.no_grad():
        for param, weight in zip(fresh, loaded["weights"], strict=True):
            param.copy_(weight)
    other.load_state_dict(loaded["optimizer"])
    for param in fresh:
        if low and not is_vector(to_numpy(param)):
            assert state_of(other, param)["momentum"].dtype == torch.bfloat16
    run(other, fresh, (3, 4))
    for param, twin in zip(params, fresh, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert same_bits(param, twin) and set(mine) == set(theirs)
        assert all(same_bits(mine[name], theirs[name]) for name in mine)


def _as_before_the_frame(state_dict: dict[str, Any]) -> dict[str, Any]:
    old = copy.deepcopy(state_dict)
    for group in old["param_groups"]:
        for key in NEW_KEYS:
            group.pop(key, None)
    return old


@pytest.mark.parametrize("name", ["fromage", "fromage-p_bound-1", "fromage-maximize"])
def test_a_checkpoint_of_before_the_frame_continues_bit_equal(name: str) -> None:
    """Its groups know nothing of directions, scales and splits: it goes on by the paper's rule."""

    def built() -> tuple[list[nn.Parameter], Optimizer]:
        params = [param for each in kinds_of_tensors(torch.bfloat16).values() for param in each]
        return params, BY_NAME[name].make(params)

    params, optimizer = built()
    run(optimizer, params, (1, 2))
    fresh, other = built()
    with torch.no_grad():
        for param, weight in zip(fresh, params, strict=True):
            param.copy_(weight)
    other.load_state_dict(_as_before_the_frame(optimizer.state_dict()))
    run(optimizer, params, (3, 4))
    run(other, fresh, (3, 4))
    assert all(same_bits(a, b) for a, b in zip(params, fresh, strict=True))
    again = [state["param_groups"] for state in (other.state_dict(), optimizer.state_dict())]
    assert [group.keys() for group in again[0]] == [group.keys() for group in again[1]]
    assert [g.keys() for g in other.param_groups] == [g.keys() for g in optimizer.param_groups]


def test_what_0_1_0_did_not_know_is_written_only_where_it_is_set() -> None:
    """Distributed checkpoints are read key by key: those of 0.1.0 have none of these."""
    param = kinds_of_tensors(torch.float32)["matrices"][0]
    for options, known in (({}, False), ({"iterations": 2}, True)):
        optimizer = Fromage([param], direction="sinkhorn", **options)
        (group,) = optimizer.state_dict()["param_groups"]
        assert ("iterations" in group) is known and "iterations" in optimizer.param_groups[0]
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.param_groups[0]["iterations"] == options.get("iterations")
    groups = [{"params": [param], "rule": "adamw", "lr_factor": None}]
    assert "lr_factor" not in Fromage(groups).state_dict()["param_groups"][0]


def test_an_optimizer_pickled_before_the_frame_continues() -> None:
    params = kinds_of_tensors(torch.float32)["matrices"]
    optimizer = Fromage(params, p_bound=1.0)
    run(optimizer, params, (1,))
    other_params, other = pickle.loads(pickle.dumps((params, optimizer)))
    for group in other.param_groups:
        for key in NEW_KEYS:
            group.pop(key, None)
    other_params, other = pickle.loads(pickle.dumps((other_params, other)))
    run(optimizer, params, (2,))
    run(other, other_params, (2,))
    assert all(same_bits(a, b) for a, b in zip(params, other_params, strict=True))


def test_the_factor_of_a_rate_is_no_key_that_other_schedules_read() -> None:
    """Theirs is lr_scale, and they multiply by it; checkpoints in which it was ours still load."""
    params = kinds_of_tensors(torch.float32)["matrices"]
    optimizer = Fromage(params, direction="momentum", lr_factor=0.5)
    run(optimizer, params, (1,))
    saved = optimizer.state_dict()
    assert all("lr_scale" not in group for group in saved["param_groups"])
    for group in saved["param_groups"]:
        group["lr_scale"] = group.pop("lr_factor")
    other = Fromage(params, direction="momentum")
    other.load_state_dict(saved)
    assert [group["lr_factor"] for group in other.param_groups] == [0.5]
    assert all("lr_scale" not in group for group in other.param_groups)
    for group in optimizer.param_groups:
        group["lr_scale"] = 0.1
    other.load_state_dict(optimizer.state_dict())
    assert [(g["lr_factor"], g["lr_scale"]) for g in other.param_groups] == [(0.5, 0.1)]


@pytest.mark.parametrize("key", ["momentum", "second_moment", "anchor_norm"])
def test_a_damaged_checkpoint_is_refused(key: str) -> None:
    params = kinds_of_tensors(torch.float32)["matrices"]
    optimizer = Fromage(params, direction="adam")
    run(optimizer, params, (1,))
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][0][key]
    before = snapshot(params)
    with pytest.raises(ValueError, match=key):
        optimizer.load_state_dict(saved)
    assert all(same_bits(a, b) for a, b in zip(params, before, strict=True))
