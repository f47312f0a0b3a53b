"""Options as data: what each takes, what it refuses, and that text means the same as a value."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt import ConfigError, Fromage, Madam
from hf_relopt.optim.fromage import FromageOptions
from hf_relopt.optim.madam import MadamOptions
from hf_relopt.options.checks import check_options, parse_value, refuse_swallowed
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
    documented = re.findall(r"^        (\w+): ", CLASSES[rule].__doc__, re.MULTILINE)
    assert sorted(documented) == sorted(parameters)


@pytest.mark.parametrize("rule", OPTIONS)
def test_every_default_is_allowed(rule):
    check_options(rule, {name: option.default for name, option in OPTIONS[rule].items()})


@pytest.mark.parametrize(("rule", "name"), [(r, n) for r in OPTIONS for n in OPTIONS[r]])
def test_every_refusal_names_option_value_range_and_remedy(rule, name):
    class Odd:
        def __repr__(self):
            return "something odd"

    with pytest.raises(ConfigError) as error:
        check_options(rule, {name: Odd()})
    option = OPTIONS[rule][name]
    for words in (name, "something odd", rule, option.allowed, option.remedy):
        assert words in str(error.value)


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


@given(st.floats(0, 0.999, allow_subnormal=False))
def test_text_means_what_the_value_means(value):
    assert parse_value("fromage", "lr", repr(value)) == value
    assert parse_value("madam", "beta", str(value)) == value


@given(st.text(max_size=8))
def test_no_text_ends_in_another_error(text):
    for rule, name in (
        ("fromage", "p_bound"),
        ("adamw", "betas"),
        ("madam", "maximize"),
        ("fromage", "seed"),
        ("fromage", "backend"),
    ):
        try:
            value = parse_value(rule, name, text)
        except ConfigError:
            continue
        check_options(rule, {name: value})


def test_foreign_keys_pass_and_slips_do_not():
    refuse_swallowed(
        "fromage",
        {
            "initial_lr": 1,
            "param_names": [],
            "weight_decay": 0.0,
            "is_expert": True,
            "role": "matrix",
            "params": [],
        },
    )
    for slip in ("p_bonud", "min_scales", "backends", "p_scale", "betas"):
        with pytest.raises(ConfigError, match=slip):
            refuse_swallowed("fromage", {slip: 1})


@pytest.mark.parametrize("lr", [0.03, torch.tensor(0.03)])
def test_a_rate_and_its_scale_stay_a_fraction(lr: float | torch.Tensor) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    says = r"lr_factor is 50.0 where lr is 0.03; fromage takes a product below 1 .*an lr below 0.02"
    with pytest.raises(ConfigError, match=says):
        Fromage([weight], lr=lr, lr_factor=50.0)


def test_a_schedule_cannot_take_the_product_out_of_range() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    says = r"lr_factor is 50.0 where lr is 0.03; fromage takes a product below 1"
    optimizer = Fromage([weight], lr=0.01, lr_factor=50.0)
    optimizer.param_groups[0]["lr"] = 0.03
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ConfigError, match=says):
        optimizer.step()
    assert torch.equal(weight, torch.ones_like(weight))
