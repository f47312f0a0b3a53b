"""What an optimizer is given: lists of parameters, gradients, weights that were resized."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.errors import ConfigError, UnsupportedSetup
from tests.cases import BACKENDS, DEFAULTS, Case
from tests.refusals import refused
from tests.tensors import run, same_bits, set_gradients, snapshot, weights

NAN = math.nan
RATE = r"0 <= lr < 1"


def _name(value: object) -> str:
    return value.name if isinstance(value, Case) else getattr(value, "__name__", repr(value))


# --- unknown options ----------------------------------------------------------------------


# --- parameter lists ----------------------------------------------------------------------


@pytest.mark.parametrize("case", DEFAULTS, ids=_name)
def test_bad_parameter_lists_are_refused(case: Case) -> None:
    one, two, _ = weights(torch.float32)
    refused(lambda: case.make([]), "empty", "trainable")
    refused(lambda: case.make(iter(())), "empty", "trainable")
    refused(lambda: case.make([{"params": []}]), "empty", "trainable")
    refused(lambda: case.make(one), "list")
    for what in (5, None, "weights", nn.Linear(2, 2)):
        refused(lambda what=what: case.make(what), "params is", "model.parameters()")
    refused(lambda: case.make([5]), "type int", "tensors")
    refused(lambda: case.make([{"params": 5}]), "params is 5", "tensors")
    refused(lambda: case.make([{"lr": 0.1}]), "no 'params'", "lr")
    refused(lambda: case.make([{"params": [one]}, two]), "mixes", "group")
    refused(lambda: case.make([one, two, one]), "twice", "(4, 3)")
    refused(lambda: case.make([("a", one), ("b", one)]), "twice")
    refused(lambda: case.make([{"params": [one]}, {"params": [two, one]}]), "twice")
    refused(lambda: case.make([nn.Parameter(torch.ones(2, dtype=torch.cfloat))]), "complex", "real")


@pytest.mark.parametrize("case", DEFAULTS, ids=_name)
def test_what_torch_refuses_stays_refused(case: Case) -> None:
    leaf = nn.Parameter(torch.ones(3))
    with pytest.raises((ConfigError, ValueError)):
        case.make([leaf * 2])
    with pytest.raises((ConfigError, TypeError)):
        case.make(["weight"])
    with pytest.raises((ConfigError, TypeError)):
        case.make([{"params": {leaf}}])


# --- at a step ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, 1.5, NAN])
@pytest.mark.parametrize("case", DEFAULTS, ids=_name)
def test_a_schedule_that_leaves_the_range_is_stopped(case: Case, value: float) -> None:
    params = weights(torch.float32)
    optimizer = case.make([{"params": params[:1]}, {"params": params[1:]}])
    set_gradients(params, 1)
    before = snapshot(params)
    optimizer.param_groups[1]["lr"] = value
    refused(optimizer.step, "lr", str(value), RATE)
    assert all(same_bits(a, b) for a, b in zip(params, before, strict=True))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", DEFAULTS, ids=_name)
def test_sparse_gradient_is_refused_before_anything_moves(
    case: Case, backend: str, grouped: bool
) -> None:
    dense = nn.Parameter(torch.ones(3, 2))
    table = nn.Embedding(5, 2, sparse=True)
    named = [("dense", dense), ("table.weight", table.weight)]
    groups = [{"params": [entry]} for entry in named] if grouped else named
    optimizer = case.make(groups, backend=backend)
    before = snapshot([dense, table.weight])
    (table(torch.tensor([1, 2])).sum() + dense.sum()).backward()
    refused(optimizer.step, "table.weight", "sparse", "sparse=False")
    assert all(same_bits(a, b) for a, b in zip([dense, table.weight], before, strict=True))
    assert not any(optimizer.state.values())


@pytest.mark.parametrize("kind", [Fromage, Madam])
def test_a_step_where_nothing_ever_had_a_gradient_warns(kind):
    """As when fully_shard has replaced the weights after the optimizer was made."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight])
    with pytest.warns(UserWarning, match="trains nothing"):
        optimizer.step()
    weight.grad = torch.ones(3)
    optimizer.step()
    weight.grad = None
    optimizer.step()  # a pause is none of our business


@pytest.mark.parametrize("steps", [0, 1])
def test_a_weight_that_was_resized_is_refused_before_anything_moves(steps: int) -> None:
    params = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5, 3))]
    optimizer = Fromage(params, direction="momentum")
    run(optimizer, params, range(steps))
    params[1].data, params[1].grad = torch.randn(7, 3), None
    before = snapshot(params)
    with pytest.raises(UnsupportedSetup, match=r"\(7, 3\).*\(5, 3\).*resized.*make the optimizer"):
        run(optimizer, params, (steps,))
    assert all(map(same_bits, params, before))
    assert all(float(state["step"]) == steps for state in optimizer.state.values())
