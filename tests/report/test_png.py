"""Figures as PNGs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hf_relopt.report.chart import Chart, Line
from hf_relopt.report.png import write_pngs
from hf_relopt.report.run_files import read_run
from hf_relopt.report.run_page import figures
from tests.report.test_chart import heat


def test_one_picture_per_figure(whole_run):
    drawn = [each for _, part in figures(read_run(whole_run)) for each in part]
    paths = write_pngs(drawn, whole_run / "report.html")
    assert [path.name for path in paths] == [f"report_{each.key}.png" for each in drawn]
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.size[0] == 1200
    assert not [*whole_run.glob(".*")]


def test_names_that_would_be_formulas_or_have_no_letters_in_the_font(tmp_path):
    steps = np.arange(3.0)
    lines = [Line(name, steps, steps, look) for look, name in enumerate(["$x^", "_a", "重み"])]
    charts = [
        Chart("k", "a $\\frac$ title", lines),
        Chart("k", "again", lines),
        heat([[np.nan, 0]]),
    ]
    paths = write_pngs(charts, tmp_path / "p.html")
    assert len(set(paths)) == 3 and all(path.stat().st_size > 5000 for path in paths)
