"""What a figure shows, before it becomes SVG or PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_relopt.report.axes import Scale, scale_of, step_scale
from hf_relopt.report.numbers import Array, thinned

POINTS = 400  # of a line; more cannot be told apart on a screen
FEW = 12  # points; each is marked, since a line through one or two shows next to nothing


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: in the legend.
        steps: [n] ascending; the horizontal axis.
        values: [n], NaN for a gap.
        look: number of its colour and line style.
        marked: whether each point is marked.
    """

    name: str
    steps: Array
    values: Array
    look: int = 0
    marked: bool = False

    @property
    def gaps(self) -> Array:
        """Where the value is not finite."""
        return self.steps[np.isnan(self.values)]

    @property
    def is_thinned(self) -> bool:
        """Whether fewer points are drawn than there are."""
        return len(self.steps) > POINTS

    def drawn(self) -> tuple[Array, Array]:
        """The points that are drawn."""
        return thinned(self.steps, self.values, POINTS)


@dataclass(frozen=True)
class Band:
    """What lies between two quantiles.

    Attributes:
        name: in the legend.
        low: [n] at ``steps``; ``high`` the same.
    """

    name: str
    steps: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Chart:
    """Curves over steps.

    Attributes:
        key: short name, for a PNG's file name.
        title: what is shown.
        lines: the curves.
        unit: of the vertical axis.
        log: whether the vertical axis is logarithmic.
        from_zero: whether a linear one begins at zero.
        note: a sentence on how to read it.
        across: the horizontal axis.
        band: a range around the curves.
        wide: whether it takes the page's full width.
        measured: a gap is where nothing was measured, not a value that is not finite.
    """

    key: str
    title: str
    lines: Sequence[Line]
    unit: str = ""
    log: bool = False
    from_zero: bool = False
    note: str = ""
    across: str = "step"
    band: Band | None = None
    wide: bool = False
    measured: bool = False

    @property
    def horizontal(self) -> Scale:
        """The axis of steps."""
        return step_scale([line.steps for line in self.lines])

    @property
    def vertical(self) -> Scale:
        """The axis of values."""
        band = [self.band.low, self.band.high] if self.band else []
        values = [*(line.values for line in self.lines), *band]
        return scale_of(values, log=self.log, from_zero=self.from_zero)


@dataclass(frozen=True)
class HeatMap:
    """One value per layer and stretch of steps.

    Attributes:
        key: short name, for a PNG's file name.
        title: what is shown.
        values: [rows, columns], NaN where nothing is known.
        rows: full name of each row.
        blocks: the part of the network that each row belongs to, as in "h.0".
        spans: first and last logged step of each column.
        note: how to read it.
        name: of the values.
    """

    key: str
    title: str
    values: Array
    rows: Sequence[str]
    blocks: Sequence[str]
    spans: Sequence[tuple[int, int]]
    note: str = ""
    name: str = "relative update"

    @property
    def scale(self) -> Scale:
        """From pale to strong, logarithmic; a few outliers do not decide."""
        known = self.values[np.isfinite(self.values) & (self.values > 0)]
        if not len(known):
            return Scale(1e-6, 1.0, True)
        low, high = (float(each) for each in np.quantile(known, (0.01, 0.99)))
        if high / low < 1.5:
            middle = (low * high) ** 0.5
            low, high = min(low, middle / 1.25), max(high, middle * 1.25)
        return Scale(low, high, True)
