"""Charts as SVG: curves, gaps, marks, and the same in words."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from hf_relopt.report.chart import Band, Chart, Line
from hf_relopt.report.svg_chart import COLOURS, LOOKS, chart_figure, dash, described


def line(values, name="a", **given):
    values = np.array(values, dtype=float)
    return Line(name, np.arange(1.0, len(values) + 1), values, **given)


def paths(figure):
    return re.findall(r'<path d="([^"]*)" class="line', figure)


def test_a_curve_goes_through_its_points():
    (path,) = paths(chart_figure(Chart("k", "t", [line([0, 1, 2])])))
    x, y = np.array(re.findall(r"[ML](-?\d+) (-?\d+)", path), dtype=float).T
    assert x.tolist() == [0, 5000, 10_000]
    assert y[1] == pytest.approx(5000, abs=1) and y[0] > y[1] > y[2]


def test_a_value_that_is_not_finite_is_a_gap_a_cross_and_a_sentence():
    figure = chart_figure(Chart("k", "t", [line([1, np.nan, 2, 3, np.nan])]))
    (path,) = paths(figure)
    assert path.count("M") == 2 and path.count("L") == 1
    assert figure.count('class="gap"') == 2
    assert "2 of 5 values are not finite (NaN or Inf; step 2, 5)" in figure


def test_a_gap_where_nothing_was_measured_is_no_fault():
    figure = chart_figure(Chart("k", "t", [line([1, np.nan, 2])], measured=True))
    assert "not finite" not in figure and 'class="gap"' not in figure


def test_a_curve_without_any_finite_value_is_said_to_be_one():
    chart = Chart("k", "t", [line([np.nan, np.nan])])
    assert "no finite value" in chart_figure(chart) and "no finite value" in described(chart)


def test_a_single_step_is_a_point():
    figure = chart_figure(Chart("k", "t", [line([3.0])]))
    assert figure.count("<circle") == 1 and 'cx="50.00%"' in figure
    assert described(Chart("k", "Loss", [line([3.0])])) == "Loss: a is 3 at step 1."


def test_many_points_are_thinned_and_the_page_says_so():
    figure = chart_figure(Chart("k", "t", [line(np.sin(np.arange(20_000)))]))
    assert "Of 20,000 logged values" in figure and len(figure) < 30_000


def test_the_values_for_the_script_are_those_that_are_drawn():
    chart = Chart("k", "t", [line([1, np.nan, 2.123456789], name="</script><b>")])
    figure = chart_figure(chart)
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', figure)
    assert json.loads(text)["lines"] == [
        {"name": "</script><b>", "x": [1, 2, 3], "y": [1, None, 2.1235]}
    ]
    assert "<b>" not in re.sub(r"<b>[\d.]+</b>", "", figure)


def test_curves_are_told_apart_by_colour_and_by_line_style():
    looks = {(look % COLOURS, dash(look)) for look in range(LOOKS)}
    assert len(looks) == LOOKS
    assert all(
        dash(a) != dash(a + 1) and a % COLOURS != (a + 1) % COLOURS for a in range(LOOKS - 1)
    )


def test_what_a_logarithm_cannot_show_breaks_the_curve():
    (path,) = paths(chart_figure(Chart("k", "t", [line([1, 0, 10])], log=True)))
    assert path.count("M") == 2


def test_a_band_leaves_out_what_is_not_known():
    steps, low = np.arange(3.0), np.array([1.0, np.nan, 1.0])
    figure = chart_figure(Chart("k", "t", [line([1, 2, 3])], band=Band("b", steps, low, low + 1)))
    (outline,) = re.findall(r'<path d="([^"]*)" class="band"', figure)
    assert outline.count("L") == 3 and "nan" not in figure
