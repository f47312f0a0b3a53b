"""The heat map as inline SVG: one rectangle per cell, coloured by class for light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hf_relopt.report.chart import HeatMap
from hf_relopt.report.markup import Markup, data, joined, tag
from hf_relopt.report.numbers import Array, words

LEVELS = "abcdefghijklmnop"
NOTHING, ZERO = "y", "z"
_HIGH, _LOW, _MOST = 18, 2, 600  # pixels of a row, and of all rows together
_LABEL = 13  # pixels that a line of text needs
_SIGNS = 30
# From pale to strong on white paper, and from dim to bright on a dark screen.
RAMPS = {
    "light": ((236, 239, 250), (129, 140, 222), (46, 41, 120)),
    "dark": ((36, 40, 60), (98, 104, 200), (214, 220, 255)),
}


def heat_map_figure(chart: HeatMap) -> Markup:
    """The figure: title, legend, map, and the values for the page's script."""
    rows = len(chart.rows)
    height = min(_HIGH, max(_LOW, _MOST / rows))
    named = height >= _LABEL
    notes = [tag("p", note, class_="note") for note in (chart.note,) if note]
    plot = tag("div", _map(chart, height), class_="plot", style=f"height:{rows * height:.0f}px")
    return tag(
        "figure",
        tag("figcaption", tag("h3", chart.title), *notes),
        _legend(chart),
        plot,
        tag("p", Markup("&nbsp;"), class_="readout", aria_live="polite"),
        data(_values(chart)),
        class_=f"chart wide heat{' named' if named else ''}",
        id=chart.key,
    )


def levels(values: Array, chart: HeatMap) -> list[str]:
    """The class of each cell."""
    places = chart.scale.places(np.asarray(values, dtype=float))
    found = []
    for value, place in zip(values, places, strict=True):
        if not np.isfinite(value):
            found.append(NOTHING)
        elif value <= 0:
            found.append(ZERO)
        else:
            found.append(LEVELS[min(max(int(place * len(LEVELS)), 0), len(LEVELS) - 1)])
    return found


def ramp_css(name: str) -> str:
    """The colours of the levels, as rules of a style sheet."""
    stops = np.array(RAMPS[name], dtype=float)
    rules = []
    for number, level in enumerate(LEVELS):
        place = number / (len(LEVELS) - 1) * (len(stops) - 1)
        low = min(int(place), len(stops) - 2)
        colour = stops[low] + (stops[low + 1] - stops[low]) * (place - low)
        rules.append(f".{level}{{fill:rgb({','.join(str(round(part)) for part in colour)})}}")
    return "".join(rules)


def described(chart: HeatMap) -> str:
    """The map in words, for those who do not see it."""
    known = np.isfinite(chart.values)
    first, last = chart.spans[0][0], chart.spans[-1][1]
    text = f"{chart.title}: {len(chart.rows)} rows, steps {first} to {last}"
    if not known.any():
        return f"{text}; nothing was measured."
    low, high = float(chart.values[known].min()), float(chart.values[known].max())
    row = chart.rows[int(np.unravel_index(np.nanargmax(chart.values), chart.values.shape)[0])]
    return f"{text}; from {words(low)} to {words(high)}, the largest in {row}."


def _map(chart: HeatMap, height: float) -> Markup:
    rows, columns = chart.values.shape
    cells = [
        f'<rect x="{x}" y="{y}" class="{level}"/>'
        for y, row in enumerate(chart.values)
        for x, level in enumerate(levels(row, chart))
    ]
    box = tag(
        "svg", Markup("".join(cells)), viewBox=f"0 0 {columns} {rows}", preserveAspectRatio="none",
        width="100%", height="100%", class_="cells",
    )  # fmt: skip
    return tag(
        "svg", box, _blocks(chart.blocks, height), _names(chart.rows), _steps(chart),
        tag("rect", class_="cursor", width="0", height="0"),
        width="100%", height="100%", role="img", aria_label=described(chart),
    )  # fmt: skip


def _blocks(blocks: Sequence[str], height: float) -> Markup:
    """A line where a block of the network begins, and its name where there is room."""
    parts, free = [], -math.inf
    for row, block in enumerate(blocks):
        if row and block == blocks[row - 1]:
            continue
        y = f"{100 * row / len(blocks):.3f}%"
        if row and height >= 4:
            parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="seam"))
        if row * height >= free:
            text = _cut(block, 12)
            parts.append(tag("text", text, x="-8", y=y, dy="10", class_="tick y block"))
            free = row * height + _LABEL
    return joined(parts)


def _names(rows: Sequence[str]) -> Markup:
    return joined(
        tag("text", _cut(name, _SIGNS), x="-8", y=f"{100 * (row + 0.5) / len(rows):.3f}%", dy="4",
            class_="tick y name")
        for row, name in enumerate(rows)
    )  # fmt: skip


def _cut(text: str, most: int) -> str:
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _steps(chart: HeatMap) -> Markup:
    """The steps below: of the first column, the last and some between."""
    count = len(chart.spans)
    chosen = sorted({round(part * (count - 1) / 4) for part in range(5)})
    parts = [tag("text", "step", x="-8", y="100%", dy="18", class_="axis-name")]
    for column in chosen:
        x = f"{100 * (column + 0.5) / count:.2f}%"
        side = " end" if count > 1 and column == count - 1 else ""
        step = words(chart.spans[column][0])
        parts.append(tag("text", step, x=x, y="100%", dy="18", class_=f"tick x{side}"))
    return joined(parts)


def _legend(chart: HeatMap) -> Markup:
    scale = chart.scale
    strip = "".join(
        f'<rect x="{number}" y="0" class="{level}"/>' for number, level in enumerate(LEVELS)
    )
    ramp = tag(
        "svg", Markup(strip), viewBox=f"0 0 {len(LEVELS)} 1", preserveAspectRatio="none",
        width="140", height="10", class_="cells ramp", aria_hidden="true",
    )  # fmt: skip
    entries = [tag("li", words(scale.low), ramp, words(scale.high), class_="scale")]
    if (chart.values == 0).any():
        entries.append(tag("li", _square(ZERO), "not changed"))
    if np.isnan(chart.values).any():
        entries.append(tag("li", _square(NOTHING), "not stepped, or not finite"))
    return tag("ul", *entries, class_="legend")


def _square(level: str) -> Markup:
    square = tag("svg", Markup(f'<rect x="0" y="0" class="{level}"/>'), viewBox="0 0 1 1",
                 width="10", height="10", class_="cells", aria_hidden="true")  # fmt: skip
    return square


def _values(chart: HeatMap) -> dict[str, object]:
    table = [
        [float(f"{value:.3g}") if np.isfinite(value) else None for value in row]
        for row in chart.values.tolist()
    ]
    return {"kind": "map", "name": chart.name, "rows": list(chart.rows),
            "spans": [list(span) for span in chart.spans], "values": table}  # fmt: skip
