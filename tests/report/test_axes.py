"""Scales and ticks, also for one value, none, and values of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt.report.axes import Scale, scale_of, step_scale, tick_words

tiny = st.lists(st.floats(-1e-300, 1e-300), min_size=1, max_size=3)


@given(
    values=st.lists(st.floats(-1e300, 1e300), max_size=8) | tiny,
    log=st.booleans(),
    from_zero=st.booleans(),
)
def test_each_value_has_its_place_and_ticks_are_inside(values, log, from_zero):
    scale = scale_of([np.array(values)], log=log, from_zero=from_zero)
    assert scale.low < scale.high
    shown = np.array([v for v in values if v > 1e-280 or not scale.log])
    places = scale.places(shown)
    assert (places >= 0).all() and (places <= 1).all()
    ticks = scale.ticks()
    assert len(ticks) <= 11 and len(set(tick_words(ticks))) == len(ticks)
    margin = 1e-6
    assert all(-margin <= scale.place(tick) <= 1 + margin for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0, 60, False, [0, 20, 40, 60]),
        (0, 20_000, False, [0, 5000, 10_000, 15_000, 20_000]),
        (6.05, 6.95, False, [6.2, 6.4, 6.6, 6.8]),
        (1e-4, 1e-2, True, [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),
        (9e-5, 1.1, True, [1e-4, 1e-3, 1e-2, 0.1, 1]),
        (1, 1e10, True, [1, 100, 1e4, 1e6, 1e8, 1e10]),
        (3.1, 4.2, True, [3.25, 3.5, 3.75, 4]),
    ],
)
def test_ticks_are_round(low, high, log, ticks):
    assert Scale(low, high, log).ticks() == pytest.approx(ticks)


def test_ticks_that_lie_close_together_are_told_apart():
    assert tick_words([99.972, 99.974, 99.976]) == ["99.972", "99.974", "99.976"]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1.7e308, -1.7e308], [1.7e308], [5e-324], [5e-324, 1.7e308]])
def test_the_largest_and_the_smallest_numbers_have_ticks(values, log):
    scale = scale_of([np.array(values)], log=log)
    assert np.isfinite(scale.ticks()).all() and np.isfinite([scale.low, scale.high]).all()


def test_the_axis_of_a_single_step_has_room():
    scale = step_scale([np.array([10.0])])
    assert scale.place(10) == 0.5


def test_what_a_logarithm_cannot_show_has_no_place():
    scale = scale_of([np.array([0.0, -1.0, 1.0, 10.0])], log=True)
    np.testing.assert_array_equal(
        np.isnan(scale.places(np.array([0.0, -1, 5]))), [True, True, False]
    )
    assert not scale_of([np.array([0.0, -1.0])], log=True).log
