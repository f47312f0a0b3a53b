"""Charts and heat maps before they are drawn."""

from __future__ import annotations

import numpy as np

from hf_relopt.report.chart import POINTS, Band, Chart, HeatMap, Line


def line(values, **given):
    values = np.array(values, dtype=float)
    return Line("a", np.arange(len(values), dtype=float), values, **given)


def test_the_axes_hold_all_lines_and_the_band():
    band = Band("b", np.arange(3.0), np.array([-5.0, 0, 0]), np.array([0, 0, 9.0]))
    chart = Chart("k", "t", [line([1, 2, 3])], band=band)
    assert chart.vertical.low < -5 and chart.vertical.high > 9
    assert (chart.horizontal.low, chart.horizontal.high) == (0, 2)


def test_gaps_and_thinning():
    assert line([1, np.nan, 2]).gaps.tolist() == [1]
    long = line(np.sin(np.arange(20_000)))
    assert long.is_thinned and len(long.drawn()[0]) <= POINTS + 2
    assert not line([1, 2]).is_thinned


def heat(values):
    values = np.array(values, dtype=float)
    rows, columns = values.shape
    names = [str(row) for row in range(rows)]
    return HeatMap("k", "t", values, names, names, [(c, c) for c in range(columns)])


def test_the_scale_of_a_heat_map_leaves_out_outliers_zeros_and_gaps():
    values = np.full((20, 20), 0.01)
    values[:10] = 0.001
    values[0, 0], values[0, 1], values[0, 2] = 1e6, 0, np.nan
    scale = heat(values).scale
    assert scale.log and 0.0005 < scale.low <= 0.001 and 0.01 <= scale.high < 0.02


def test_the_scale_of_equal_values_has_a_width():
    scale = heat([[0.01, 0.01]]).scale
    assert scale.low < 0.01 < scale.high
    assert heat([[0.0, np.nan]]).scale.log
