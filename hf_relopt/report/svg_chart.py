"""A chart as inline SVG: lengths in percent, so that text keeps its size at any width."""

from __future__ import annotations

import numpy as np

from hf_relopt.report.axes import Scale, tick_words
from hf_relopt.report.chart import FEW, Band, Chart, Line
from hf_relopt.report.markup import Markup, data, joined, tag
from hf_relopt.report.numbers import Array, words

# Each curve has a colour and a line style; eight and five give forty different pairs.
COLOURS, DASHES = 8, ("", "8 4", "2 4", "12 4 2 4", "5 2")
LOOKS = COLOURS * len(DASHES)
_UNITS = 10_000  # of the box in which curves are drawn; it is stretched to the plot
_MARKS = 200  # of gaps; more would be a bar


def chart_figure(chart: Chart) -> Markup:
    """The figure: its title, legend and plot, and the values for the page's script."""
    head = [tag("h3", chart.title)]
    head += [tag("p", note, class_="note") for note in [chart.note, *_notes(chart)] if note]
    return tag(
        "figure",
        tag("figcaption", *head),
        _legend(chart),
        tag("p", chart.unit, class_="unit", aria_hidden="true") if chart.unit else "",
        tag("div", _plot(chart), class_="plot"),
        tag("p", Markup("&nbsp;"), class_="readout", aria_live="polite"),
        data(_values(chart)),
        class_="chart wide" if chart.wide else "chart",
        id=chart.key,
    )


def described(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    parts = []
    for line in chart.lines:
        known = np.flatnonzero(np.isfinite(line.values))
        if not len(known):
            parts.append(f"{line.name} has no finite value")
            continue
        first, last = known[0], known[-1]
        parts.append(
            f"{line.name} goes from {words(line.values[first])} at {chart.across} "
            f"{words(line.steps[first])} to {words(line.values[last])} at {chart.across} "
            f"{words(line.steps[last])}"
            if first != last
            else f"{line.name} is {words(line.values[first])} at {chart.across} "
            f"{words(line.steps[first])}"
        )
    return f"{chart.title}: {'; '.join(parts)}."


def swatch(look: int) -> Markup:
    """A short piece of a curve, for a legend."""
    line = tag("line", x1="1", y1="6", x2="27", y2="6", class_=f"line c{look % COLOURS}",
               stroke_dasharray=dash(look))  # fmt: skip
    return tag("svg", line, width="28", height="12", aria_hidden="true", class_="swatch")


def dash(look: int) -> str | None:
    """The line style of a curve."""
    return DASHES[look % len(DASHES)] or None


def _legend(chart: Chart) -> Markup:
    entries = []
    if len(chart.lines) == 1 and chart.band is None:
        known = chart.lines[0].values[np.isfinite(chart.lines[0].values)]
        last = f"{words(known[-1])}" if len(known) else "no finite value"
        return tag("ul", tag("li", "at the end ", tag("b", last)), class_="legend")
    for line in chart.lines:
        known = line.values[np.isfinite(line.values)]
        last = words(known[-1]) if len(known) else "no finite value"
        entries.append(tag("li", swatch(line.look), line.name, " ", tag("b", last)))
    if chart.band is not None:
        entries.append(tag("li", tag("span", class_="band-swatch"), chart.band.name))
    return tag("ul", *entries, class_="legend")


def _notes(chart: Chart) -> list[str]:
    notes = []
    for line in chart.lines:
        gaps = line.gaps
        if len(gaps) and not chart.measured:
            which = ", ".join(words(step) for step in gaps[:6]) + (", ..." if len(gaps) > 6 else "")
            of = f" of {line.name}" if len(chart.lines) > 1 else ""
            notes.append(
                f"{len(gaps):,} of {len(line.values):,} values{of} "
                f"{'is' if len(gaps) == 1 else 'are'} not finite (NaN or Inf; {chart.across} "
                f"{which}): the curve has a gap there, marked ×."
            )
    most = max((len(line.steps) for line in chart.lines if line.is_thinned), default=0)
    if most:
        notes.append(
            f"Of {most:,} logged values the smallest and the largest of each stretch are drawn."
        )
    return notes


def _plot(chart: Chart) -> Markup:
    across, up = chart.horizontal, chart.vertical
    curves = [_band(chart.band, across, up)] if chart.band else []
    curves += [_curve(line, across, up) for line in chart.lines]
    box = tag(
        "svg", *curves, viewBox=f"0 0 {_UNITS} {_UNITS}", preserveAspectRatio="none",
        width="100%", height="100%", class_="curves",
    )  # fmt: skip
    marks = [mark for line in chart.lines for mark in _marks(line, chart, across, up)]
    return tag(
        "svg", _grid(chart, across, up), box, *marks,
        tag("line", class_="cursor", y1="0", y2="100%"),
        width="100%", height="100%", role="img", aria_label=described(chart),
    )  # fmt: skip


def _grid(chart: Chart, across: Scale, up: Scale) -> Markup:
    parts = []
    heights = up.ticks()
    for value, shown in zip(heights, tick_words(heights), strict=True):
        y = f"{100 * (1 - up.place(value)):.2f}%"
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(tag("text", shown, x="-8", y=y, dy="4", class_="tick y"))
    for value in across.ticks():
        if chart.across == "step" and value != int(value):
            continue
        place = across.place(value)
        side = " end" if place > 0.96 else ""
        x = f"{100 * place:.2f}%"
        parts.append(tag("text", words(value), x=x, y="100%", dy="20", class_=f"tick x{side}"))
    parts.append(tag("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis"))
    parts.append(tag("text", chart.across, x="-8", y="100%", dy="20", class_="axis-name"))
    return joined(parts)


def _curve(line: Line, across: Scale, up: Scale) -> Markup:
    steps, values = line.drawn()
    x, y = _units(across.places(steps)), _units(1 - up.places(values))
    pieces, drawing = [], False
    for place in range(len(steps)):
        if np.isnan(y[place]):
            drawing = False
            continue
        # A point between two gaps is a line of no length, which round ends make visible.
        pieces.append(f"{'L' if drawing else 'M'}{x[place]:.0f} {y[place]:.0f}")
        if not drawing:
            pieces.append("h0")
        drawing = True
    return tag(
        "path", d="".join(pieces), class_=f"line c{line.look % COLOURS}",
        stroke_dasharray=dash(line.look),
    )  # fmt: skip


def _band(band: Band, across: Scale, up: Scale) -> Markup:
    known = np.isfinite(up.places(band.low)) & np.isfinite(up.places(band.high))
    places = np.flatnonzero(known)[:: max(1, int(known.sum()) // 400)]
    x = _units(across.places(band.steps[places]))
    low, high = (_units(1 - up.places(each[places])) for each in (band.low, band.high))
    there = [f"{a:.0f} {b:.0f}" for a, b in zip(x, high, strict=True)]
    back = [f"{a:.0f} {b:.0f}" for a, b in zip(x[::-1], low[::-1], strict=True)]
    outline = f"M{'L'.join([*there, *back])}Z" if there else ""
    return tag("path", d=outline, class_="band")


def _units(places: Array) -> Array:
    return np.clip(places, -0.2, 1.2) * _UNITS


def _marks(line: Line, chart: Chart, across: Scale, up: Scale) -> list[Markup]:
    """Dots where there are few points, and a cross for each gap."""
    marks = []
    if line.marked or len(line.steps) <= FEW:
        for step, value in zip(*line.drawn(), strict=True):
            place = up.place(value)
            if np.isfinite(place):
                x, y = f"{100 * across.place(step):.2f}%", f"{100 * (1 - place):.2f}%"
                marks.append(tag("circle", cx=x, cy=y, r="3", class_=f"dot c{line.look % COLOURS}"))
    if not chart.measured:
        for step in line.gaps[:: max(1, len(line.gaps) // _MARKS)]:
            x = f"{100 * across.place(step):.2f}%"
            marks.append(tag("text", "×", x=x, y="100%", dy="-3", class_="gap"))
    return marks


def _values(chart: Chart) -> dict[str, object]:
    """What the page's script shows beside the cursor."""
    across = chart.horizontal
    lines = []
    for line in chart.lines:
        steps, values = line.drawn()
        shown = [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
        x = [float(f"{step:.8g}") for step in steps]
        lines.append({"name": line.name, "x": x, "y": shown})
    return {"kind": "lines", "x": chart.across, "low": across.low, "high": across.high,
            "lines": lines}  # fmt: skip
