"""Weights of a checkpoint are found by name where both sides have names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from tests.loads import refuses
from tests.tensors import Optimizer, gradient, same_bits


def _shuffled(
    kind: Any, order: str, shapes: dict[str, tuple[int, ...]], split: int = 0, prefix: str = ""
) -> tuple[dict[str, nn.Parameter], Optimizer]:
    """An optimizer over weights that are the same by name, in the order that is given."""
    params = {
        name: nn.Parameter(gradient(torch.empty(shape), ord(name)))
        for name, shape in shapes.items()
    }
    named = [(prefix + name, params[name]) for name in order]
    groups = [{"params": part} for part in (named[:split], named[split:]) if part]
    return params, kind(groups)


def _run_named(params: dict[str, nn.Parameter], optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for name, param in params.items():
            param.grad = gradient(param, 100 * step + ord(name))
        optimizer.step()


SAME = dict.fromkeys("abcd", (4, 3))


MIXED = {"a": (4, 3), "b": (4, 3), "c": (2, 2), "d": (5,)}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("shapes", [SAME, MIXED], ids=["same", "mixed"])
@pytest.mark.parametrize("kind", [Fromage, Madam])
def test_weights_in_another_order_are_found_by_name(
    kind: Any, shapes: dict[str, tuple[int, ...]], prefix: str
) -> None:
    params, optimizer = _shuffled(kind, "abcd", shapes, prefix=prefix)
    _run_named(params, optimizer, range(2))
    twins, other = _shuffled(kind, "dbac", shapes)
    with torch.no_grad():
        for name, param in params.items():
            twins[name].copy_(param)
    saved = optimizer.state_dict()
    given = copy.deepcopy(saved)
    other.load_state_dict(saved)
    assert saved["param_groups"] == given["param_groups"]
    for name, param in params.items():
        mine, theirs = optimizer.state[param], other.state[twins[name]]
        assert all(same_bits(mine[key], theirs[key]) for key in mine)
    assert other.param_groups[0]["param_names"] == list("dbac")
    _run_named(params, optimizer, range(2, 4))
    _run_named(twins, other, range(2, 4))
    assert all(same_bits(param, twins[name]) for name, param in params.items())
    again = _shuffled(kind, "dbac", shapes)[1]
    again.load_state_dict(other.state_dict())


@pytest.mark.parametrize(("inside", "outside"), [("model.net.", ""), ("", "net."), ("a.", "b.")])
def test_weights_of_a_model_inside_another_are_found_by_name(inside: str, outside: str) -> None:
    params, optimizer = _shuffled(Madam, "abcd", SAME, prefix=inside)
    _run_named(params, optimizer, range(2))
    twins, other = _shuffled(Madam, "dbac", SAME, prefix=outside)
    other.load_state_dict(optimizer.state_dict())
    for name, param in params.items():
        mine, theirs = optimizer.state[param], other.state[twins[name]]
        assert same_bits(mine["second_moment"], theirs["second_moment"])


def test_groups_in_another_order_are_found_by_name() -> None:
    params, optimizer = _shuffled(Madam, "abcd", SAME, split=2)
    optimizer.param_groups[0]["lr"] = 0.25
    _run_named(params, optimizer, range(2))
    twins, other = _shuffled(Madam, "dcba", SAME, split=2)
    other.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.01, 0.25]
    assert same_bits(
        other.state[twins["a"]]["second_moment"], optimizer.state[params["a"]]["second_moment"]
    )


def test_other_groups_over_the_same_names_are_refused() -> None:
    params, optimizer = _shuffled(Madam, "abcd", SAME, split=2)
    _run_named(params, optimizer, range(1))
    twins, other = _shuffled(Madam, "acbd", SAME, split=2)
    _run_named(twins, other, range(1))
    refuses(other, optimizer.state_dict(), "group", "a")


def test_names_that_are_known_elsewhere_are_refused() -> None:
    """A weight went, another came: by their order the rest would get each other's state."""
    params, optimizer = _shuffled(Madam, "abcd", SAME)
    _run_named(params, optimizer, range(1))
    twins, other = _shuffled(Madam, "bcde", dict.fromkeys("bcde", (4, 3)))
    _run_named(twins, other, range(1))
    refuses(other, optimizer.state_dict(), "b", "wrong weights")


def test_renamed_weights_load_by_their_order() -> None:
    params, optimizer = _shuffled(Madam, "abcd", SAME)
    _run_named(params, optimizer, range(1))
    for order in ("wxyz", "abcz"):
        twins, other = _shuffled(Madam, order, dict.fromkeys(order, (4, 3)))
        other.load_state_dict(optimizer.state_dict())
        for name, twin in zip("abcd", order, strict=True):
            mine, theirs = optimizer.state[params[name]], other.state[twins[twin]]
            assert same_bits(mine["second_moment"], theirs["second_moment"])
