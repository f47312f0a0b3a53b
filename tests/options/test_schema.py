"""One option as data: what it accepts, how it reads text, and what it says it allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt.options.schema import (
    flag,
    is_number,
    none_or,
    number,
    one_of,
    parse_bool,
    parse_pair,
)

# What compares in a way of its own, or cannot be compared.
ODD = [
    np.array(["a", "b"]),
    np.zeros(2),
    torch.zeros(2),
    torch.tensor(True),
    [],
    {},
    object(),
    b"a",
]


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(), st.none()))
def test_a_number_is_a_finite_one_that_fits_into_a_float(value: Any) -> None:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = numeric and (not isinstance(value, float) or math.isfinite(value))
    if fits and isinstance(value, int):
        fits = abs(value) < 2**1023
    assert is_number(value) is fits


def test_an_int_of_many_digits_is_no_number() -> None:
    assert not is_number(10**400) and not is_number(-(10**400)) and is_number(10**300)


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("option", [
    flag("leave it"), one_of("a", ["a", "b"], "use a"), one_of(None, ["a"], "leave it out"),
    number(1.0, "> 0", lambda value: value > 0, "use 1"),
    number(None, "None or > 0", lambda value: value > 0, "leave it out"),
], ids=["flag", "word", "word or None", "number", "number or None"])  # fmt: skip
def test_what_is_of_no_kind_of_ours_is_not_accepted_and_breaks_nothing(
    option: Any, value: object
) -> None:
    assert option.accepts(value) is False


def test_a_flag_is_a_bool_and_nothing_that_equals_one() -> None:
    option = flag("leave it out")
    assert option.accepts(True) and option.accepts(False) and option.default is False
    assert not any(map(option.accepts, (0, 1, None, "true")))


def test_none_is_a_value_only_where_it_is_the_default() -> None:
    for made, other in (
        (one_of(None, ["a"], "r"), one_of("a", ["a"], "r")),
        (number(None, "w", lambda v: True, "r"), number(1.0, "w", lambda v: True, "r")),
    ):
        assert made.accepts(None) and not other.accepts(None)
        assert made.parse("None") is None and made.parse("none") is None
    assert one_of(None, ["a", "b"], "r").allowed == "None, 'a', 'b'"
    assert one_of("a", iter(["a", "b"]), "r").allowed == "'a', 'b'"


@pytest.mark.parametrize(("parse", "text", "value"), [
    (parse_bool, "True", True), (parse_bool, "no", False), (parse_bool, "1", True),
    (parse_pair, "0.9;0.999", (0.9, 0.999)), (parse_pair, "(0.9;0.99)", (0.9, 0.99)),
    (parse_pair, "[1;2]", (1.0, 2.0)), (none_or(int), "NONE", None), (none_or(int), "3", 3),
])  # fmt: skip
def test_text_is_read(parse: Callable[[str], Any], text: str, value: object) -> None:
    found = parse(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("parse", "text"), [
    (parse_bool, "on"), (parse_bool, ""), (parse_pair, "0.9"), (parse_pair, "0.9,0.99"),
    (parse_pair, "1;2;3"), (none_or(float), "nine"),
])  # fmt: skip
def test_text_of_another_kind_ends_in_what_the_checks_catch(
    parse: Callable[[str], Any], text: str
) -> None:
    with pytest.raises((ValueError, KeyError)):
        parse(text)
