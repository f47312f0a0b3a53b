"""The figures of a page as PNGs, for slides and papers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_relopt.report.axes import Scale
from hf_relopt.report.chart import FEW, Chart, HeatMap, Line
from hf_relopt.report.numbers import words
from hf_relopt.report.page import cannot_write
from hf_relopt.report.svg_heat_map import RAMPS
from hf_relopt.whole_file import whole_file

# The page's colours and line styles on white paper.
_COLOURS = ("#4453c4", "#c2410c", "#0f766e", "#a21caf", "#4d7c0f", "#0369a1", "#be123c", "#57534e")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 2)), (0, (6, 2, 1, 2)), (0, (2.5, 1)))
_INK, _QUIET, _GRID = "#1c2330", "#596273", "#e4e7ec"


def write_pngs(figures: Sequence[Chart | HeatMap], page: Path) -> list[Path]:
    """Write one PNG per figure beside a page, named after both.

    Args:
        figures: the charts and the heat map.
        page: the page's path.

    Returns:
        The files, in the order of the figures.

    Raises:
        ConfigError: a file cannot be written.
    """
    paths: list[Path] = []
    for each in figures:
        path = page.with_name(f"{page.stem}_{each.key}.png")
        while path in paths:
            path = path.with_name(f"{path.stem}_.png")
        _write(each, path)
        paths.append(path)
    return paths


def _write(drawn: Chart | HeatMap, path: Path) -> None:
    # Not pyplot, which would look for a window and keep every figure.
    from matplotlib.figure import Figure

    tall = min(3 + 0.14 * len(drawn.rows), 12) if isinstance(drawn, HeatMap) else 4
    figure = Figure(figsize=(8, tall), dpi=150, layout="constrained")
    axes = figure.subplots()
    # A name from a file may hold a dollar sign, which would begin a formula.
    figure.suptitle(drawn.title, x=0.02, ha="left", color=_INK, fontsize=12, fontweight="bold",
                    parse_math=False)  # fmt: skip
    if isinstance(drawn, HeatMap):
        _draw_map(drawn, figure, axes)
    else:
        _draw_chart(drawn, axes)
    axes.tick_params(colors=_QUIET, labelsize=9)
    try:
        with warnings.catch_warnings(), whole_file(path) as unfinished:
            # A sign that the font lacks is drawn as a box.
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
            figure.savefig(unfinished, format="png")
    except OSError as error:
        raise cannot_write(path, error) from error


def _draw_chart(chart: Chart, axes: Any) -> None:
    if chart.band is not None:
        axes.fill_between(chart.band.steps, chart.band.low, chart.band.high, color=_COLOURS[0],
                          alpha=0.16, linewidth=0)  # fmt: skip
    across, up = chart.horizontal, chart.vertical
    for line in chart.lines:
        steps, values = line.drawn()
        shown = np.isfinite(up.places(values))
        axes.plot(steps, np.where(shown, values, np.nan), **_style(line))
        if not chart.measured:
            gaps = line.gaps
            axes.plot(gaps, np.full(len(gaps), up.low), "x", color="#8a4b00", clip_on=False)
    axes.set_xlim(across.low, across.high)
    axes.set_ylim(up.low, up.high)
    if up.log:
        axes.set_yscale("log")
    _mark(axes.yaxis, up)
    axes.set_xlabel(chart.across, color=_INK)
    axes.set_ylabel(chart.unit, color=_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_QUIET)
    legend = axes.legend(frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _style(line: Line) -> dict[str, Any]:
    style = {
        "color": _COLOURS[line.look % len(_COLOURS)],
        "linestyle": _DASHES[line.look % len(_DASHES)],
        # A label that begins with _ would be left out of the legend.
        "label": f" {line.name}" if line.name.startswith("_") else line.name,
        "linewidth": 1.6,
    }
    if line.marked or len(line.steps) <= FEW:
        style |= {"marker": "o", "markersize": 4}
    return style


def _mark(axis: Any, scale: Scale) -> None:
    from matplotlib.ticker import NullLocator

    ticks = scale.ticks()
    axis.set_ticks(ticks, [words(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


def _draw_map(chart: HeatMap, figure: Any, axes: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    stops = [tuple(part / 255 for part in stop) for stop in RAMPS["light"]]
    ramp = LinearSegmentedColormap.from_list("relopt", stops)
    colours = ramp.with_extremes(bad=_GRID)
    scale = chart.scale
    values = np.where(chart.values == 0, scale.low, chart.values)
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", interpolation="nearest",
                        cmap=colours, norm=LogNorm(scale.low, scale.high, clip=True))  # fmt: skip
    first = [at for at, block in enumerate(chart.blocks) if not at or block != chart.blocks[at - 1]]
    chosen = first[:: max(1, len(first) // 30)]
    axes.set_yticks(chosen, [chart.blocks[at] for at in chosen], parse_math=False)
    columns = sorted({round(part * (len(chart.spans) - 1) / 5) for part in range(6)})
    axes.set_xticks(columns, [f"{chart.spans[at][0]:,}" for at in columns])
    axes.set_xlabel("step", color=_INK)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, pad=0.02).outline.set_visible(False)
