"""Bad input ends in one clear ConfigError: option, value, what is allowed, remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.errors import ConfigError, UnsupportedSetup
from tests.cases import BACKENDS, DEFAULTS, Case
from tests.refusals import refused
from tests.tensors import Optimizer, run, same_bits, set_gradients, snapshot, weights

NAN, INF = math.nan, math.inf
RATE = r"0 <= lr < 1"


def _name(value: object) -> str:
    return value.name if isinstance(value, Case) else getattr(value, "__name__", repr(value))


# option, value, how the value reads, what is allowed, the remedy
BAD_FOR_BOTH = [
    ("lr", -0.01, "-0.01", RATE, "0.01"),
    ("lr", 1.0, "1.0", RATE, "0.01"),
    ("lr", 5, "5", RATE, "0.01"),
    ("lr", NAN, "nan", RATE, "0.01"),
    ("lr", INF, "inf", RATE, "0.01"),
    ("lr", -INF, "-inf", RATE, "0.01"),
    ("lr", "0.01", "'0.01'", RATE, "0.01"),
    ("lr", None, "None", RATE, "0.01"),
    ("lr", True, "True", RATE, "0.01"),
    ("lr", torch.tensor(-0.5), "-0.5", RATE, "0.01"),
    ("lr", torch.tensor(NAN), "nan", RATE, "0.01"),
    ("lr", torch.tensor([0.25, 0.5]), "0.25, 0.5", RATE, "0.01"),
    ("min_scale", -1.0, "-1.0", ">= 0", "0.1"),
    ("min_scale", NAN, "nan", ">= 0", "0.1"),
    ("min_scale", INF, "inf", ">= 0", "0.1"),
    ("min_scale", None, "None", ">= 0", "0.1"),
    ("rounding", "up", "'up'", "'stochastic', 'nearest'", "stochastic"),
    ("rounding", 1, "1", "'stochastic', 'nearest'", "stochastic"),
    ("seed", 1.5, "1.5", "integer", "0"),
    ("seed", "1", "'1'", "integer", "0"),
    ("seed", None, "None", "integer", "0"),
    ("backend", "triton", "'triton'", "'loop', 'foreach', 'compiled'", "foreach"),
    ("backend", None, "None", "'loop', 'foreach', 'compiled'", "foreach"),
    ("backend", ["loop"], "['loop']", "'loop', 'foreach', 'compiled'", "foreach"),
    ("maximize", 1, "1", "True or False", "minimise"),
    ("maximize", "yes", "'yes'", "True or False", "minimise"),
]
BAD = [
    *[(build, *row) for build in (Fromage, Madam) for row in BAD_FOR_BOTH],
    *[
        (Fromage, "p_bound", value, repr(value), "> 0", "1.0")
        for value in (0.0, -1.0, NAN, INF, "1.0", True)
    ],
    *[
        (Madam, "beta", value, repr(value), "0 <= beta < 1", "0.999")
        for value in (1.0, -0.1, NAN, None, (0.9, 0.999))
    ],
    *[
        (Madam, name, value, repr(value), "> 0", usual)
        for name, usual in (("p_scale", "3.0"), ("g_bound", "10.0"))
        for value in (0.0, -1.0, NAN, INF, None, "3")
    ],
]


@pytest.mark.parametrize(("build", "option", "value", "shown", "allowed", "remedy"), BAD, ids=_name)
def test_bad_value_is_refused_at_construction(
    build: type[Optimizer], option: str, value: object, shown: str, allowed: str, remedy: str
) -> None:
    words = (option, shown, allowed, remedy)
    refused(lambda: build(weights(torch.float32), **{option: value}), *words)
    group = {"params": weights(torch.float32), option: value}
    refused(lambda: build([group]), *words)
    params = weights(torch.float32)
    optimizer = build(params[:2])
    refused(lambda: optimizer.add_param_group({"params": [params[2]], option: value}), *words)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("build", "option", "value"),
    [
        (Fromage, "lr", 0),
        (Fromage, "lr", 0.999),
        (Fromage, "lr", torch.tensor(0.25, dtype=torch.float64)),
        (Fromage, "p_bound", None),
        (Fromage, "p_bound", 2),
        (Fromage, "min_scale", 0),
        (Fromage, "seed", -(2**70)),
        (Madam, "beta", 0),
        (Madam, "p_scale", 1),
        (Madam, "g_bound", 1e-3),
        (Madam, "rounding", None),
    ],
)
def test_values_on_the_edge_are_taken(build: type[Optimizer], option: str, value: Any) -> None:
    params = weights(torch.bfloat16)
    run(build(params, **{option: value}), params, (1, 2))
    assert all(torch.isfinite(param).all() for param in params)


# --- unknown options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "option", "value", "words"),
    [
        (Fromage, "p_bond", 1.0, ("fromage", "p_bond", "p_bound")),
        (Fromage, "p_scale", 3.0, ("fromage", "p_scale", "madam")),
        (Fromage, "beta", 0.9, ("direction", "beta", "adam")),
        (Fromage, "momentum", 0.9, ("direction", "momentum", "spectral")),
        (Fromage, "g_bound", 3.0, ("fromage", "g_bound", "madam")),
        (Fromage, "dampening", 0.9, ("fromage", "dampening", "p_bound", "min_scale")),
        (Madam, "p_bound", 1.0, ("madam", "p_bound", "fromage")),
        (Madam, "betas", (0.9, 0.999), ("madam", "betas")),
        (Madam, "g_bond", 1.0, ("madam", "g_bond", "g_bound")),
    ],
)
def test_unknown_option_is_refused(
    build: type[Optimizer], option: str, value: object, words: tuple[str, ...]
) -> None:
    refused(lambda: build(weights(torch.float32), **{option: value}), *words)


@pytest.mark.parametrize(("build", "remedy"), [(Fromage, "p_bound"), (Madam, "p_scale")])
def test_weight_decay_is_refused_with_its_remedy(build: type[Optimizer], remedy: str) -> None:
    group = {"params": weights(torch.float32), "weight_decay": 0.1}
    refused(lambda: build([group]), "weight_decay", "0.1", "0", remedy)
    refused(lambda: build(weights(torch.float32), weight_decay=0.1), "weight_decay")
    group["weight_decay"] = 0.0
    assert build([group]).param_groups[0]["weight_decay"] == 0.0


def test_unknown_rule_in_a_group_is_refused() -> None:
    group = {"params": weights(torch.float32), "rule": "nero"}
    refused(lambda: Fromage([group]), "nero", "fromage", "madam", "adamw")


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


@pytest.mark.parametrize("option", ["g_bound", "betas", "p_bnd"])
def test_an_option_that_would_be_swallowed_in_a_group_is_refused(option: str) -> None:
    group = {"params": weights(torch.float32), option: 1.0}
    with pytest.raises(ConfigError, match=option):
        Fromage([group])


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
