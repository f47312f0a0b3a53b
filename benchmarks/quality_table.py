"""From finished runs of quality.py to figures: means, the best of a family, steps to a loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optimizer_spec import OptimizerSpec, optimizer_spec
from run_log import markdown_table

Record = dict[str, Any]
Seeds = Iterable[int] | None
# Where more is better.
RISING = ("accuracy",)


@dataclass(frozen=True)
class Entry:
    """All runs of one optimizer with one set of options, by seed."""

    spec: OptimizerSpec
    runs: dict[int, Record]

    @property
    def measure(self) -> str:
        """The figure that ranks this task's runs."""
        return "accuracy" if "accuracy" in self.first else "validation_loss"

    @property
    def first(self) -> Record:
        """The run that ended first."""
        return next(iter(self.runs.values()))

    @property
    def lr(self) -> float:
        """The rate, also where it is the default one."""
        return self.first["lr"]

    def values(self, what: str, seeds: Seeds = None) -> list[float]:
        """One figure of the runs with these seeds; of all for None or no seed."""
        chosen = list(seeds or self.runs)
        return [self.runs[seed][what] for seed in chosen]

    def mean(self, what: str, seeds: Seeds = None) -> float:
        """The mean of one figure over these seeds."""
        return statistics.mean(self.values(what, seeds))

    def result(self, seeds: Seeds = None) -> float:
        """The mean of the measure over these seeds."""
        return self.mean(self.measure, seeds)

    def glances(self, seeds: Seeds = None) -> list[tuple[int, float]]:
        """(step, mean validation loss on the small part) over these seeds."""
        curves = self.values("glances", seeds)
        means = [
            statistics.mean(loss for _, loss in points) for points in zip(*curves, strict=True)
        ]
        return [(step, loss) for (step, _), loss in zip(curves[0], means, strict=True)]


def entries(records: list[Record]) -> list[Entry]:
    """Runs put together by optimizer, sorted by family and rate."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        found.setdefault(record["key"]["optim"], {})[record["key"]["seed"]] = record
    made = [Entry(optimizer_spec(name), runs) for name, runs in found.items()]
    return sorted(made, key=lambda entry: (entry.spec.name, entry.lr, str(entry.spec)))


def best(rivals: list[Entry]) -> Entry:
    """The best of some entries over the seeds that all of them have (each over all of its own, if
    they share none). Runs that diverged come last."""
    seeds = set.intersection(*(set(entry.runs) for entry in rivals))

    def score(entry: Entry) -> float:
        value = entry.result(seeds)
        if not math.isfinite(value):
            return math.inf
        return -value if entry.measure in RISING else value

    return min(rivals, key=score)


def families(all_of_them: list[Entry]) -> dict[str, list[Entry]]:
    """Entries by the optimizer's name."""
    found: dict[str, list[Entry]] = {}
    for entry in all_of_them:
        found.setdefault(entry.spec.name, []).append(entry)
    return found


def best_of_each(all_of_them: list[Entry]) -> list[Entry]:
    """The best entry of each family."""
    return [best(family) for family in families(all_of_them).values()]


def at_edge(entry: Entry, family: list[Entry]) -> bool:
    """Is the rate the lowest or highest of several? Then a better one may lie beyond."""
    rates = {other.lr for other in family}
    return len(rates) > 1 and entry.lr in (min(rates), max(rates))


def percent_of_steps(glances: list[tuple[int, float]], target: float) -> float | None:
    """Where a validation curve first reaches `target`, linear between glances; None if nowhere."""
    if not glances:
        return None
    end = glances[-1][0]
    before: tuple[int, float] | None = None
    for step, loss in glances:
        if loss <= target:
            if before is None:
                return 100 * step / end
            part = (before[1] - target) / (before[1] - loss)
            return 100 * (before[0] + part * (step - before[0])) / end
        before = (step, loss)
    return None


def table(records: list[Record]) -> str:
    """One row per optimizer and rate; the best of a family in bold."""
    all_of_them = entries(records)
    winners = best_of_each(all_of_them)
    adamw = next((entry for entry in winners if entry.spec.name == "adamw"), None)
    rows = [
        _row(entry, entry in winners, family, adamw)
        for family in families(all_of_them).values()
        for entry in family
    ]
    accuracy = all_of_them[0].measure == "accuracy"
    header = ["optimizer", "lr", "accuracy, %" if accuracy else "validation loss", "range"]
    header += ["seeds", "minus AdamW's best", "steps to AdamW's best loss, %"]
    header += ["validation loss"] if accuracy else []
    header += ["state, bytes per weight"]
    header += ["GPU s", "peak GiB"] if "peak_bytes" in all_of_them[0].first else ["CPU s"]
    return markdown_table(header, rows)


def _row(entry: Entry, winner: bool, family: list[Entry], adamw: Entry | None) -> list[str]:
    digits = 1 if entry.measure == "accuracy" else 3
    values = entry.values(entry.measure)
    result = f"{entry.result():.{digits}f}"
    if winner:
        result = f"**{result}**" + (" (edge)" if at_edge(entry, family) else "")
    several = len(values) > 1
    cells = [
        f"`{entry.spec}`",
        f"{entry.lr:g}",
        result,
        f"{min(values):.{digits}f} to {max(values):.{digits}f}" if several else "",
        str(len(values)),
        *_against(entry, adamw, digits),
    ]
    if entry.measure == "accuracy":
        cells.append(f"{entry.mean('valid_loss'):.3f}")
    cells.append(f"{entry.first['state_bytes_per_weight']:.2f}")
    cells.append(f"{statistics.median(entry.values('seconds')):.0f}")
    if "peak_bytes" in entry.first:
        cells.append(f"{max(entry.values('peak_bytes')) / 2**30:.1f}")
    return cells


def _against(entry: Entry, adamw: Entry | None, digits: int) -> tuple[str, str]:
    """The difference from AdamW's best, and the share of steps that reach its loss."""
    if adamw is None:
        return "", ""
    # The same seeds on both sides, as far as there are such.
    seeds = entry.runs.keys() & adamw.runs.keys()
    gap = entry.result(seeds) - adamw.result(seeds)
    target = adamw.glances(seeds)
    percent = percent_of_steps(entry.glances(seeds), target[-1][1]) if target else None
    return f"{gap:+.{digits}f}", "never" if percent is None else f"{percent:.0f}"
