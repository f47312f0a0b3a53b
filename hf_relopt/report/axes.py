"""Axes: where a value lies between the ends, and which round values are marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_relopt.report.numbers import Array, words

_STEPS = (1, 2, 2.5, 5, 10)
_TINY = 1e-280  # below it a value is as good as zero


@dataclass(frozen=True)
class Scale:
    """One axis.

    Attributes:
        low: value at the beginning.
        high: value at the end; more than ``low``.
        log: whether equal ratios take equal lengths; ``low`` is positive then.
    """

    low: float
    high: float
    log: bool = False

    def places(self, values: Array) -> Array:
        """Where values lie, 0 to 1; NaN for those that a logarithm cannot show."""
        if not self.log:
            return (values - self.low) / (self.high - self.low)
        logs = np.full(np.shape(values), np.nan)
        np.log(values, out=logs, where=np.asarray(values) > 0)
        return (logs - math.log(self.low)) / (math.log(self.high) - math.log(self.low))

    def place(self, value: float) -> float:
        """Where one value lies."""
        return float(self.places(np.array([value]))[0])

    def ticks(self, most: int = 5) -> list[float]:
        """Round values from ``low`` to ``high``, about ``most`` of them at most."""
        found = _log_ticks(self.low, self.high, most) if self.log else []
        return found if len(found) > 1 else _linear_ticks(self.low, self.high, most)


def scale_of(values: Iterable[Array], *, log: bool = False, from_zero: bool = False) -> Scale:
    """An axis that shows all finite values, with a little room at its ends.

    Args:
        log: asks for a logarithmic axis; it is linear if no value is positive.
        from_zero: whether a linear axis begins at zero.
    """
    joined = np.concatenate([np.ravel(each) for each in values] or [np.zeros(0)]).astype(float)
    # Beyond 1e300 a difference of two values may be infinite.
    known = np.clip(joined[np.isfinite(joined)], -1e300, 1e300)
    if log and (known > _TINY).any():
        known = known[known > _TINY]
        low, high = float(known.min()), float(known.max())
        room = max(math.exp(0.04 * (math.log(high) - math.log(low))), 1.1)
        return Scale(low / room, min(high * room, 1e307), True)
    if not len(known):
        return Scale(0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    low = min(low, 0.0) if from_zero else low
    widths = ((high - low) * 0.05, abs(high) * 0.1, 1.0)
    room = next(width for width in widths if width > _TINY)
    return Scale(low if from_zero and low == 0 else low - room, high + room)


def step_scale(steps: Iterable[Array]) -> Scale:
    """The axis of steps, without room at its ends."""
    joined = np.concatenate([np.ravel(each) for each in steps] or [np.zeros(0)])
    if not len(joined):
        return Scale(0.0, 1.0)
    low, high = float(joined.min()), float(joined.max())
    return Scale(low, high) if high > low else Scale(low - 0.5, high + 0.5)


def tick_words(values: Sequence[float]) -> list[str]:
    """Ticks to read, with as many digits as tell them apart."""
    found = [words(value) for value in values]
    for digits in range(5, 10):
        if len(set(found)) == len(found):
            break
        found = [f"{value:.{digits}g}" for value in values]
    return found


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    width = (high - low) / max(most, 1)
    size = 10.0 ** math.floor(math.log10(width))
    step = next(size * each for each in _STEPS if size * each >= width * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded: 3 * 0.1 is no round number.
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(place * step, digits) + 0.0 for place in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / (most + 1)))
    found: list[float] = []
    for parts in ((1, 2, 5), (1, 3), (1,)):
        powers = range(first - 1, last + 1) if every == 1 else range(first, last + 1, every)
        found = [float(f"{part}e{power}") for power in powers for part in parts]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most + 1 and (every == 1 or parts == (1,)):
            break
    return found
