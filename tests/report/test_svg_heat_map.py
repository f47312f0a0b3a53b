"""The heat map as SVG: its cells, their levels, its legend."""

from __future__ import annotations

import re

import numpy as np

from hf_relopt.report.svg_heat_map import (
    LEVELS,
    NOTHING,
    ZERO,
    described,
    heat_map_figure,
    levels,
    ramp_css,
)
from tests.report.test_chart import heat


def cells(figure):
    inside = re.search(r'<svg viewBox="0 0 \d+ \d+"[^>]*class="cells">(.*?)</svg>', figure)[1]
    return re.findall(r'<rect x="(\d+)" y="(\d+)" class="(\w)"/>', inside)


def test_one_rectangle_per_cell():
    values = np.geomspace(1e-4, 1e-2, 6).reshape(2, 3)
    found = cells(heat_map_figure(heat(values)))
    assert [(x, y) for x, y, _ in found] == [(str(x), str(y)) for y in range(2) for x in range(3)]
    shades = [level for _, _, level in found]
    assert shades == sorted(shades) and shades[0] == LEVELS[0] and shades[-1] == LEVELS[-1]


def test_zero_and_nothing_have_levels_of_their_own_and_the_legend_says_so():
    chart = heat([[0.01, 0.0, np.nan, 1e9]])
    assert levels(chart.values[0], chart)[1:3] == [ZERO, NOTHING]
    figure = heat_map_figure(chart)
    assert "not changed" in figure and "not stepped" in figure
    assert "not changed" not in heat_map_figure(heat([[0.01, 0.02]]))


def test_all_colours_of_both_schemes_are_there_and_differ():
    for name in ("light", "dark"):
        rules = re.findall(r"\.(\w)\{fill:(rgb\([\d,]+\))\}", ramp_css(name))
        assert [level for level, _ in rules] == list(LEVELS)
        assert len({colour for _, colour in rules}) == len(LEVELS)


def test_in_words():
    text = described(heat([[0.01, 0.02], [0.03, np.nan]]))
    assert text == "t: 2 rows, steps 0 to 1; from 0.01 to 0.03, the largest in 1."
    assert "nothing was measured" in described(heat([[np.nan]]))
