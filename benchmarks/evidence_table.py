"""Tables and pictures of evidence.py: the recommended rate, the best one, and what lies between."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evidence_experiment import Experiment, value_of, without_rate
from run_log import markdown_table

# Settings that are drawn at most, and how many of them beside each other.
MOST_PANELS, COLUMNS = 9, 3


@dataclass(frozen=True)
class Sweep:
    """One optimizer in one setting.

    Attributes:
        by_rate: by learning rate, in rising order, the value of each seed; infinite where a run has
            no number. Of the seeds alone that all rates have; where there is none, of those of the
            recommended rate, and of rates that have them.
        recommended: the rate a user begins with.
        rising: is more of it better?
        records: all of its runs.
        seeds: that the values are of.
    """

    by_rate: dict[float, list[float]]
    recommended: float
    rising: bool
    records: list[dict[str, Any]]
    seeds: set[int]

    @cached_property
    def values(self) -> dict[float, float]:
        """By learning rate, the mean over seeds."""
        return {rate: statistics.mean(values) for rate, values in self.by_rate.items()}

    @property
    def apart(self) -> float:
        """At the best rate, the largest value over seeds less the smallest."""
        values = self.by_rate[self.best_rate]
        return max(values) - min(values)

    @property
    def at_recommended(self) -> float | None:
        """What a user has who does not tune; None if that was not run."""
        return self.values.get(self.recommended)

    @property
    def best_rate(self) -> float:
        """The rate with the best mean."""
        pick = max if self.rising else min
        return pick(self.values, key=lambda rate: self.values[rate])

    @property
    def best(self) -> float:
        """The best mean."""
        return self.values[self.best_rate]

    @property
    def without_number(self) -> str:
        """Why there is no number where there is none."""
        return "refused" if all("refused" in record for record in self.records) else "diverged"

    @property
    def compares(self) -> bool:
        """Was more than one rate run? One says nothing about what others would gain or lose."""
        return len(self.values) > 1

    @property
    def is_at_edge(self) -> bool:
        """Is the best rate the lowest or highest that was run? Then a better one may lie beyond."""
        return self.compares and self.best_rate in (min(self.values), max(self.values))

    def valley(self, near: float) -> tuple[float, float]:
        """The lowest and highest rate about the best one, up to which values are as good but for
        `near`.

        Between two rates of the sweep values lie on a line in the rate's logarithm; a rate without
        a number ends the valley at the rate before it.
        """
        rates = list(self.values)
        best = rates.index(self.best_rate)
        return self._end(rates[best::-1], near), self._end(rates[best:], near)

    def _end(self, rates: list[float], near: float) -> float:
        for inner, outer in itertools.pairwise(rates):
            if not math.isfinite(self.values[outer]):
                return inner
            lost, next_lost = (abs(self.values[rate] - self.best) for rate in (inner, outer))
            if next_lost > near:
                share = (near - lost) / (next_lost - lost)
                return inner * (outer / inner) ** share
        return rates[-1]


# Optimizer without a rate -> setting -> its sweep.
Sweeps = dict[str, dict[str, Sweep]]


def sweeps(records: list[dict[str, Any]], experiment: Experiment) -> Sweeps:
    """Runs put together by optimizer and setting, in the order of the experiment's settings."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        key = without_rate(record["key"]["optim"]), record["key"]["setting"]
        found.setdefault(key, []).append(record)
    order = settings_of(records)
    made: Sweeps = {}
    for rival in sorted({name for name, _ in found}):
        made[rival] = {
            setting: _sweep(found[rival, setting], rival, experiment)
            for setting in order
            if (rival, setting) in found
        }
    return made


def settings_of(records: list[dict[str, Any]]) -> list[str]:
    """The settings of all runs; numbers by size, as in 5 and 20, or 2x64 and 2x128."""
    found = {record["key"]["setting"] for record in records}
    return sorted(found, key=lambda text: ([int(part) for part in re.findall(r"\d+", text)], text))


def _sweep(records: list[dict[str, Any]], rival: str, experiment: Experiment) -> Sweep:
    seeds: dict[float, set[int]] = {}
    for record in records:
        seeds.setdefault(record["lr"], set()).add(record["key"]["seed"])
    first = experiment.recommended_rate(rival, records[0]["key"].get("steps"))
    kept = set.intersection(*seeds.values()) or seeds.get(first) or next(iter(seeds.values()))
    by_rate: dict[float, list[float]] = {}
    for record in records:
        if record["key"]["seed"] in kept and kept <= seeds[record["lr"]]:
            by_rate.setdefault(record["lr"], []).append(value_of(record, experiment))
    return Sweep(dict(sorted(by_rate.items())), first, experiment.rising, records, kept)


def tables(records: list[dict[str, Any]], experiment: Experiment) -> str:
    """At the recommended rate, at the best one, and the difference; a column for each setting."""
    found = sweeps(records, experiment)
    settings = settings_of(records)
    measure = experiment.measure.replace("_", " ")

    def number(value: float) -> str:
        return f"{value:.{experiment.digits}f}"

    def first(sweep: Sweep) -> str:
        value = sweep.at_recommended
        if value is None:
            return ""
        return number(value) if math.isfinite(value) else sweep.without_number

    def best(sweep: Sweep) -> str:
        if not math.isfinite(sweep.best):
            return sweep.without_number
        seeds = f" ± {number(sweep.apart / 2)}" * (len(sweep.seeds) > 1)
        return f"{number(sweep.best)}{seeds} at {sweep.best_rate:g}" + " (edge)" * sweep.is_at_edge

    def cost(sweep: Sweep) -> str:
        first = sweep.at_recommended
        if first is None or not math.isfinite(first) or not sweep.compares:
            return ""
        return number(abs(first - sweep.best))

    def wide(sweep: Sweep) -> str:
        if not math.isfinite(sweep.best) or not sweep.compares:
            return ""
        low, high = sweep.valley(experiment.near)
        ends_beyond = low == min(sweep.values) or high == max(sweep.values)
        factor = high / low
        return "at least " * ends_beyond + (f"{factor:.2g}" if factor < 100 else f"{factor:.0f}")

    kinds: dict[str, Callable[[Sweep], str]] = {
        f"{measure} at the recommended rate": first,
        f"{measure} at the best rate": best,
        "what tuning gains": cost,
    }
    if experiment.near:
        kinds[f"by which factor rates may differ that lose less than {experiment.near:g}"] = wide
    shown = []
    for title, cell in kinds.items():
        rows = [
            [
                f"`{rival}`",
                f"{next(iter(own.values())).recommended:g}",
                *[cell(own[setting]) if setting in own else "" for setting in settings],
            ]
            for rival, own in found.items()
        ]
        header = ["optimizer", "recommended rate", *settings]
        shown.append(f"**{title[0].upper()}{title[1:]}**\n\n{markdown_table(header, rows)}")
    if len(settings) > 1:
        shown.append(_moves(found))
    shown.append(_costs(found))
    return "\n\n".join(shown)


def _moves(found: Sweeps) -> str:
    """How far the best rate moves from setting to setting, where there is one."""
    rows = []
    for rival, own in found.items():
        found_in = [sweep for sweep in own.values() if math.isfinite(sweep.best)]
        if len(found_in) > 1:
            rates = [sweep.best_rate for sweep in found_in]
            low, high = min(rates), max(rates)
            edges = sum(sweep.is_at_edge for sweep in found_in)
            numbers = [f"{low:g}", f"{high:g}", f"{high / low:.3g}", len(rates), edges]
            rows.append([f"`{rival}`", *numbers])
    header = [
        "optimizer",
        "lowest best rate",
        "highest",
        "factor",
        "settings",
        "of them at an edge",
    ]
    return f"**How far the best rate moves**\n\n{markdown_table(header, rows)}"


def _costs(found: Sweeps) -> str:
    """What the optimizers hold and take."""
    rows = []
    for rival, own in found.items():
        trained = [r for sweep in own.values() for r in sweep.records if "refused" not in r]
        seeds = set[int]().union(*(sweep.seeds for sweep in own.values()))
        bad = sum(record["diverged_at"] is not None for record in trained)
        state = max((record["state_bytes_per_weight"] for record in trained), default=math.nan)
        rows.append([f"`{rival}`", len(trained), len(seeds), bad, f"{state:.2f}"])
    header = ["optimizer", "runs", "seeds of the means", "diverged", "state, bytes per weight"]
    return markdown_table(header, rows)


def draw(path: Path, records: list[dict[str, Any]], experiment: Experiment) -> None:
    """The measure against the rate, a panel for each setting; where settings are numbers, against
    them: at the recommended rate, and at the best one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found, settings = sweeps(records, experiment), settings_of(records)
    by_number = len(settings) > 1 and all(setting.isdigit() for setting in settings)
    titles = ["recommended rate", "best rate"] if by_number else settings[:MOST_PANELS]
    columns = min(COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    size = (5.5 * columns + 3.0, 4.5 * rows)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    places = grid.flatten()
    panels, empty = places[: len(titles)], places[len(titles) :]
    for place in empty:
        place.set_axis_off()
    for panel, title in zip(panels, titles, strict=True):
        for number, (rival, own) in enumerate(found.items()):
            style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
            if by_number:
                points = _by_setting(own, best=title == "best rate")
                panel.plot(*_finite(points), marker=".", label=rival, **style)
            elif title in own:
                sweep = own[title]
                panel.plot(*_finite(sweep.values), marker=".", label=rival, **style)
                first = sweep.at_recommended
                if first is not None and math.isfinite(first):
                    ring = {"marker": "o", "markersize": 9, "fillstyle": "none"}
                    panel.plot(sweep.recommended, first, color=style["color"], **ring)
        panel.set(title=title, xlabel="hidden layers" if by_number else "learning rate")
        if not by_number:
            panel.set_xscale("log")
    _zoom(panels[0], found, experiment)
    for first in grid[:, 0]:
        first.set_ylabel(experiment.measure.replace("_", " "))
    # Beside the panels: within one it would hide what it names.
    named = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    shown = {name: line for name, line in named.items() if name in found}
    figure.legend(shown.values(), shown.keys(), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _by_setting(own: dict[str, Sweep], best: bool) -> dict[float, float]:
    points = {}
    for setting, sweep in own.items():
        value = sweep.best if best else sweep.at_recommended
        if value is not None:
            points[float(setting)] = value
    return points


def _finite(points: dict[float, float]) -> tuple[list[float], list[float]]:
    kept = [(x, y) for x, y in points.items() if math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def _zoom(panel: Any, found: Sweeps, experiment: Experiment) -> None:
    """Leave the worst runs out of the picture: one loss of a thousand makes all others a line."""
    every = [value for own in found.values() for sweep in own.values() for value in
             sweep.values.values() if math.isfinite(value)]  # fmt: skip
    if experiment.rising or len(every) < 4:
        return
    least, middle = min(every), statistics.median(every)
    panel.set_ylim(least - 0.05 * (middle - least), least + 2.5 * (middle - least))
