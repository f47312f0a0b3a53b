"""Numbers of logs: what is finite, in words, and fewer of them where there are many."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def number_or_nan(value: object) -> float:
    """A number from JSON as a float; NaN for what is no finite number, as in null or "NaN".

    Beyond 1e290, which no float32 of a training can hold, a number counts as not finite: sums and
    products of such numbers overflow.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:  # JSON's integers have no largest
        return math.nan
    return number if abs(number) <= 1e290 else math.nan


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of a log is a number or stands for one, as NaN does."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_step(value: object) -> TypeGuard[int]:
    """Whether a value of a log can be the number of a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def finite(values: Array) -> Array:
    """The same with NaN in place of infinities."""
    values[~np.isfinite(values)] = np.nan
    return values


def words(value: float) -> str:
    """A number to read: four significant digits, thousands apart, small ones as 2.5e-5."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e9):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if value == int(value) and size < 1e9:
        return f"{int(value):,}"
    if size >= 1000:
        return f"{value:,.1f}"
    return f"{value:.4g}"


def thinned(steps: Array, values: Array, most: int) -> tuple[Array, Array]:
    """At most about ``most`` points that keep the first, the last, each peak and each gap.

    Of each stretch of steps its smallest and its largest value stay, and one NaN if it holds any.

    Args:
        steps: [n] ascending.
        values: [n], NaN where there is a gap.
        most: points to keep.
    """
    if len(steps) <= most:
        return steps, values
    kept = {0, len(steps) - 1}
    for part in np.array_split(np.arange(len(steps)), max(1, most // 2)):
        known = part[np.isfinite(values[part])]
        if len(known):
            kept |= {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
        gaps = part[np.isnan(values[part])]
        kept |= {int(place) for place in gaps[:1]}
    chosen = np.array(sorted(kept))
    return steps[chosen], values[chosen]


def medians(values: Array, axis: int) -> Array:
    """The median over one axis of the values that are known; NaN where none is."""
    return quantiles(values if axis == 1 else values.T, (0.5,))[0]


def quantiles(table: Array, shares: tuple[float, ...]) -> Array:
    """[shares, n] quantiles over the second axis of a table [n, m]; NaN where no value is known."""
    known = np.isfinite(table)
    result = np.full((len(shares), len(table)), np.nan)
    whole = known.all(axis=1) & (table.shape[1] > 0)
    some = known.any(axis=1) & ~whole
    # Many times faster than nanquantile, and nearly all rows are whole.
    if whole.any():
        result[:, whole] = np.quantile(table[whole], shares, axis=1)
    if some.any():
        result[:, some] = np.nanquantile(table[some], shares, axis=1)
    return result
