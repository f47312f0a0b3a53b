"""Directions by name: which options each reads."""

from __future__ import annotations

import pytest

from hf_relopt.options.tables import DIRECTION_OPTIONS
from hf_relopt.plans.directions import DIRECTIONS, READ_BY, read_by


def test_every_reader_is_a_direction_and_every_option_one_of_the_frame() -> None:
    assert READ_BY.keys() <= DIRECTION_OPTIONS.keys()
    assert all(readers and set(readers) <= set(DIRECTIONS) for readers in READ_BY.values())
    # None says that nobody gave it, so that it can stand for what is not read.
    assert {DIRECTION_OPTIONS[name].default for name in READ_BY} == {None}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_a_direction_does_not_read_is_none(direction: str) -> None:
    given = {**dict.fromkeys(READ_BY, 0.5), "p_bound": 2.0, "lr_factor": 3.0}
    found = read_by(direction, given)
    assert found.keys() == given.keys()
    assert (found["p_bound"], found["lr_factor"]) == (2.0, 3.0)
    for name, readers in READ_BY.items():
        assert found[name] == (0.5 if direction in readers else None)
