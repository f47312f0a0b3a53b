"""Limits check themselves, and judge what a look has found."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hf_relopt.distance.limits import Limits
from hf_relopt.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ("no limit", "either hold, or drt")),
        ({"hold": 0.1, "drt": 1.0}, ("hold=0.1", "drt=1.0", "two budgets")),
        ({"hold": 0}, ("hold is 0", "> 0", "0.03")),
        ({"hold": -0.1}, ("hold is -0.1",)),
        ({"hold": True}, ("hold is True",)),
        ({"hold": "0.1"}, ("hold is '0.1'",)),
        ({"drt": math.inf}, ("drt is inf",)),
        ({"drt": math.nan}, ("drt is nan",)),
        ({"layer": 0.0}, ("layer is 0.0",)),
        ({"drt": 1, "every": 0}, ("every is 0", ">= 1", "100")),
        ({"drt": 1, "every": 2.5}, ("every is 2.5",)),
        ({"drt": 1, "every": True}, ("every is True",)),
        ({"hold": 0.1, "copy": "float8"}, ("copy is 'float8'", "'exact', 'bfloat16', 'disk'")),
        ({"hold": 0.1, "free": "classifier.*"}, ("free is 'classifier.*'", "['classifier.*']")),
        ({"hold": 0.1, "initial": {"w": 1}}, ("initial is a dict", "path")),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_with_its_value_and_the_remedy(options, words):
    with pytest.raises(ConfigError) as refused:
        Limits(**options)
    for each in words:
        assert each in str(refused.value)


def test_options_are_what_json_can_hold_and_make_the_same_limits_again():
    limits = Limits(drt=0.5, initial=Path("base"), free=("head.*",))
    said = json.loads(json.dumps(limits.to_dict()))
    assert Limits(**said) == limits and said["initial"] == "base" and said["free"] == ["head.*"]


def test_a_pattern_that_matches_nothing_is_refused():
    limits = Limits(hold=0.1, free=["head.*"])
    limits.check_free(["body.weight", "head.weight"])
    assert limits.is_free("head.weight") and not limits.is_free("body.weight")
    with pytest.raises(ConfigError, match=r"free has 'head.\*'.*body.weight"):
        limits.check_free(["body.weight"])


def test_a_look_passes_above_its_limit_and_not_at_it():
    updates = {"a": 0.1, "b": 0.2}
    exact = 1.1 * 1.2 - 1
    look = Limits(drt=exact * (1 + 1e-12)).judged(7, updates, bound=False)
    assert look.passed is None and (look.step, look.name, look.largest) == (7, "b", 0.2)
    assert look.drt == pytest.approx(exact)
    assert "0.32, above 0.3" in str(Limits(drt=0.3).judged(7, updates, bound=False).passed)
    assert Limits(layer=0.2).judged(7, updates, bound=False).passed is None
    passed = Limits(layer=0.15).judged(7, updates, bound=True).passed
    assert passed is not None and "upper bound" in passed and "of b is 0.2, above 0.15" in passed


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_what_is_no_number_has_passed(lost):
    for limits in (Limits(drt=1e9), Limits(layer=1e9)):
        assert limits.judged(1, {"a": lost}, bound=False).passed is not None


def test_nothing_to_look_at_has_not_passed():
    assert Limits(drt=0.1).judged(1, {}, bound=False).passed is None
