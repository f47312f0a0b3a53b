"""Refusals of options say what was wrong and what to do; text means what a value means."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt import ConfigError, Fromage, Madam
from hf_relopt.options.checks import check_options, parse_value, refuse_swallowed
from hf_relopt.options.tables import OPTIONS
from tests.cases import Case
from tests.refusals import refused
from tests.tensors import Optimizer, run, weights


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


SLIPS = [
    "p_bonud",
    "p_bond",
    "p_bnd",
    "pbound",
    "p-bound",
    "P_bound",
    "min_scales",
    "minscale",
    "min-scale",
    "backends",
    "sed",
    "roundin",
    "maximise",
    "lr_facter",
    "lrfactor",
    "split_size",
    "split_dims",
    "momentums",
    "nestrov",
    "direktion",
    "scal",
    "share_wrok",
]


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_still_refused(slip: str) -> None:
    with pytest.raises(ConfigError, match=slip):
        refuse_swallowed("fromage", {slip: 1})


def test_another_rule_s_option_is_refused() -> None:
    for rule, options in OPTIONS.items():
        for other, theirs in OPTIONS.items():
            for name in set(theirs) - set(options) - {"weight_decay"}:
                with pytest.raises(ConfigError, match=f"{rule} has no option '{name}'.*{other}"):
                    refuse_swallowed(rule, {name: 1})


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
    ("backend", "fused", "'fused'", "'loop', 'foreach', 'compiled', 'triton'", "foreach"),
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


@pytest.mark.parametrize("option", ["g_bound", "betas", "p_bnd"])
def test_an_option_that_would_be_swallowed_in_a_group_is_refused(option: str) -> None:
    group = {"params": weights(torch.float32), option: 1.0}
    with pytest.raises(ConfigError, match=option):
        Fromage([group])
