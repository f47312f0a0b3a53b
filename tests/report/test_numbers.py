"""Numbers in words, thinned curves, medians with gaps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt.report.numbers import medians, number_or_nan, quantiles, thinned, words


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (60.0, "60"),
        (1234567.0, "1,234,567"),
        (12345.678, "12,345.7"),
        (6.13577, "6.136"),
        (0.019666, "0.01967"),
        (2.5e-5, "2.5e-5"),
        (-3e-4, "-3e-4"),
        (1e12, "1e12"),
        (math.nan, "not finite"),
        (-math.inf, "not finite"),
    ],
)
def test_numbers_in_words(value, shown):
    assert words(value) == shown


@pytest.mark.parametrize("value", [None, "3", "NaN", True, [], math.inf, math.nan, 10**400, 1e300])
def test_what_is_no_finite_number_is_nan(value):
    assert math.isnan(number_or_nan(value))


@given(
    values=st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=300),
    most=st.integers(2, 50),
)
def test_a_thinned_curve_keeps_its_ends_its_peaks_and_its_gaps(values, most):
    values = np.array(values)
    steps = np.arange(len(values), dtype=float)
    x, y = thinned(steps, values, most)
    assert len(x) <= max(len(values) if len(values) <= most else 0, 3 * (most // 2) + 2)
    assert x[0] == 0 and x[-1] == steps[-1] and (np.diff(x) > 0).all()
    np.testing.assert_array_equal(y, values[x.astype(int)])
    assert np.isnan(y).any() == np.isnan(values).any()
    if np.isfinite(values).any():
        assert np.nanmin(y) == np.nanmin(values) and np.nanmax(y) == np.nanmax(values)


def test_medians_and_quantiles_leave_gaps_where_nothing_is_known():
    table = np.array([[1.0, np.nan, 3.0], [np.nan] * 3, [5.0, 6.0, 7.0]])
    np.testing.assert_array_equal(medians(table, axis=1), [2, np.nan, 6])
    np.testing.assert_array_equal(medians(table, axis=0), [3, 6, 5])
    np.testing.assert_array_equal(quantiles(table, (0, 1))[1], [3, np.nan, 7])
    assert np.isnan(medians(np.full((2, 2), np.nan), axis=0)).all()
