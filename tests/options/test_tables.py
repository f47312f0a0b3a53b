"""The tables: which rule has which options, with which defaults and ranges."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from hf_relopt import ConfigError, Fromage, Madam
from hf_relopt.optim.fromage import FromageOptions
from hf_relopt.optim.madam import MadamOptions
from hf_relopt.options.checks import check_options
from hf_relopt.options.tables import OPTIONS

CLASSES = {"fromage": Fromage, "madam": Madam}
TYPES = {"fromage": FromageOptions, "madam": MadamOptions}
NUMBERS = {
    "lr",
    "p_bound",
    "lr_factor",
    "min_scale",
    "momentum",
    "beta",
    "p_scale",
    "g_bound",
    "eps",
    "weight_decay",
}


@pytest.mark.parametrize("rule", CLASSES)
def test_types_signature_and_docstring_have_the_options_of_the_table(rule):
    table, types = OPTIONS[rule], TYPES[rule].__annotations__
    assert set(types) == set(table) - {"lr"}
    parameters = inspect.signature(CLASSES[rule]).parameters
    assert list(parameters)[:2] == ["params", "lr"]
    assert {n: p.default for n, p in parameters.items() if n != "params"} == {
        name: option.default for name, option in table.items()
    }
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in types)
    documented = re.findall(r"^        ([a-z]\w*): ", CLASSES[rule].__doc__, re.MULTILINE)
    assert sorted(documented) == sorted(parameters)


@pytest.mark.parametrize("rule", OPTIONS)
def test_every_default_is_allowed(rule):
    check_options(rule, {name: option.default for name, option in OPTIONS[rule].items()})


@pytest.mark.parametrize(
    ("rule", "name", "inside", "outside"),
    [
        ("fromage", "lr", [0, 0.0, 0.999], [-1e-9, 1, 1.0, True, None]),
        ("fromage", "p_bound", [None, 1e-9, 5], [0, -1, True]),
        ("fromage", "min_scale", [0, 0.1], [-0.1, None]),
        ("madam", "beta", [0, 0.999], [1, -0.1, None]),
        ("madam", "p_scale", [1e-9, 3], [0, -1, None]),
        ("madam", "g_bound", [1e-9, 10], [0, None]),
        ("fromage", "rounding", [None, "nearest", "stochastic"], ["", "up", 1]),
        ("fromage", "backend", ["loop", "foreach", "compiled"], [None, "fused"]),
        ("fromage", "seed", [0, -1, 2**40], [1.0, None, True]),
        ("fromage", "maximize", [True, False], [0, 1, None]),
        ("adamw", "betas", [(0, 0.5), [0.9, 0.999]], [(0.9,), (0.9, 1.0), 0.9, (0.9, "x")]),
        ("adamw", "eps", [1e-8], [0, -1]),
        ("adamw", "weight_decay", [0, 0.1], [-0.1]),
    ],
)
def test_ranges_end_where_they_say(rule, name, inside, outside):
    for value in inside:
        check_options(rule, {name: value})
    for value in outside:
        with pytest.raises(ConfigError, match=name):
            check_options(rule, {name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("rule", "name"), [(r, n) for r in OPTIONS for n in OPTIONS[r] if n in NUMBERS]
)
def test_no_number_may_be_nan_or_infinite(rule, name, value):
    with pytest.raises(ConfigError, match=name):
        check_options(rule, {name: value})


def test_rate_as_a_tensor():
    check_options("fromage", {"lr": torch.tensor(0.1)})
    check_options("fromage", {"lr": torch.tensor(0.1, dtype=torch.bfloat16)})
    check_options("fromage", {"lr": torch.tensor([0.1])})
    two = torch.tensor([0.1, 0.1])
    for bad in (torch.tensor(1.0), two, torch.tensor(0), torch.tensor(torch.nan)):
        with pytest.raises(ConfigError, match="lr is"):
            check_options("fromage", {"lr": bad})
