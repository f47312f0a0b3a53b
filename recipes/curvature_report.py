"""What the cells of curvature.py show: tables in Markdown, a picture per length of training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

from hf_relopt.rules.distance import largest_lr

# The relative steps that the table shows.
SHOWN = (1e-3, 1e-2, 1e-1)
INK, QUIET = "#22262e", "#8a8f98"
GRADIENT, OUTPUT, LOSS = "#2a6fbb", "#2a9d8f", "#d1495b"
# Larger numbers are beyond what a picture of changes has to show.
TOP, DRAWN = 1e8, 1e16


@dataclass(frozen=True)
class Network:
    """The cells that differ in nothing but the seed.

    Attributes:
        depth, kind, steps: of the network and its training.
        cells: those with a walk.
    """

    depth: int
    kind: str
    steps: int
    cells: tuple[dict[str, Any], ...]

    @cached_property
    def relative_steps(self) -> list[float]:
        """Of the walk, ascending."""
        return [point["relative_step"] for point in self.cells[0]["points"]]

    def values(self, name: str, place: int) -> list[float]:
        """A measured number at one relative step, of each seed and, if it has them, layer."""
        found: list[float] = []
        for cell in self.cells:
            value = cell["points"][place][name]
            found += value if isinstance(value, list) else [value]
        return [value for value in found if value is not None]

    def middle(self, name: str, place: int) -> float:
        """The median of `values`."""
        return median(self.values(name, place) or [nan])

    def rises_at(self, cell: dict[str, Any]) -> float | None:
        """The first relative step after which the loss is not below where it was."""
        steps = (p["relative_step"] for p in cell["points"] if not _falls(p))
        return next(steps, None)


def _falls(point: dict[str, Any]) -> bool:
    return point["loss_change"] is not None and point["loss_change"] < 0


def networks(records: Iterable[dict[str, Any]]) -> list[Network]:
    """Group cells by network, shallow before deep, plain before residual."""
    groups: dict[tuple[int, int, bool], list[dict[str, Any]]] = {}
    for record in records:
        if record["points"]:
            key = record["key"]
            groups.setdefault((key["steps"], key["depth"], key["residual"]), []).append(record)
    return [
        Network(depth, "residual" if residual else "plain", steps, tuple(groups[name]))
        for name in sorted(groups)
        for steps, depth, residual in [name]
    ]


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Two tables: the changes at three relative steps, and how far the loss falls."""
    found = networks(records)
    parts = [_changes(found), _descent(found)]
    faults = [record for record in records if record.get("fault")]
    parts += [f"Without a walk: {_named(record['key'])}: {record['fault']}." for record in faults]
    return "\n\n".join(parts)


def _named(key: dict[str, Any]) -> str:
    kind = "residual" if key["residual"] else "plain"
    return f"{key['depth']} layers, {kind}, {key['steps']} steps, seed {key['seed']}"


def _changes(found: Sequence[Network]) -> str:
    # Of gradients: the median over layers and seeds, and the least and the most of all.
    head = (
        "training steps", "network", "η", "(1 + η)^L − 1", "gradients change by", "times that",
        "their Jacobians, times that", "output changes by", "times that", "DRT in operator norms",
        "the output's bound", "loss",
    )  # fmt: skip
    rows = []
    for network in found:
        for step in (each for each in SHOWN if each in network.relative_steps):
            place = network.relative_steps.index(step)
            drt = network.middle("drt", place)
            gradients = network.values("gradient_change", place)
            jacobians = network.values("jacobian_change", place)
            output = network.middle("output_change", place)
            rows.append(
                (
                    network.steps,
                    f"{network.depth}, {network.kind}",
                    f"{step:g}",
                    _number(drt),
                    _range(gradients),
                    _range([value / drt for value in gradients]),
                    _range([value / drt for value in jacobians]),
                    _number(output),
                    _number(output / drt),
                    _number(network.middle("spectral_drt", place)),
                    _number(network.middle("output_bound", place)),
                    _percent(network.middle("loss_change", place)),
                )
            )
    return _table(head, rows)


def _descent(found: Sequence[Network]) -> str:
    head = (
        "training steps", "network", "seeds", "loss", "accuracy",
        "loss first rises at a relative step of", "descent lemma holds below",
    )  # fmt: skip
    rows = []
    for network in found:
        rises = sorted(filter(None, map(network.rises_at, network.cells)))
        rows.append(
            (
                network.steps,
                f"{network.depth}, {network.kind}",
                len(network.cells),
                _number(median(cell["loss"] for cell in network.cells)),
                f"{100 * median(cell['accuracy'] for cell in network.cells):.1f} %",
                " to ".join(dict.fromkeys(map(_number, (rises[0], rises[-1]))))
                if rises
                else "none of these",
                _number(largest_lr(network.depth)),
            )
        )
    return _table(head, rows)


def _percent(value: float) -> str:
    return "" if value != value else f"{100 * value:+.3g} %"


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{_number(median(values))} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    if value != value:
        return ""
    return f"{value:.2g}" if abs(value) < 1e4 else f"{value:.0e}".replace("e+0", "e")


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def draw(path: Path, records: Sequence[dict[str, Any]], steps: int) -> Path:
    """Write the picture of all networks after ``steps`` of training; complete, or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [network for network in networks(records) if network.steps == steps]
    rows = sorted({network.depth for network in found})
    columns = [kind for kind in ("plain", "residual") if any(n.kind == kind for n in found)]
    figure = Figure(figsize=(4.6 * len(columns), 3.4 * len(rows) + 0.6), dpi=95)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
    for network in found:
        _panel(panels[rows.index(network.depth)][columns.index(network.kind)], network)
    for panel in panels[-1]:
        panel.set_xlabel("relative step η of every layer", color=INK)
    for row in panels:
        row[0].set_ylabel("relative change", color=INK)
    trained = f"after {steps} steps of training" if steps else "before training"
    title = f"What a step along the negative gradient changes, {trained}"
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, format="png")
    os.replace(unfinished, path)
    return path


def _panel(panel: Any, network: Network) -> None:
    x = network.relative_steps

    def at_each(name: str) -> list[list[float]]:
        found = (network.values(name, place) or [nan] for place in range(len(x)))
        # Beyond the picture's top; matplotlib's scale overflows at numbers near float64's end.
        return [[max(-DRAWN, min(DRAWN, value)) for value in values] for values in found]

    def middle(name: str) -> list[float]:
        return [abs(median(values)) for values in at_each(name)]

    spread = at_each("gradient_change")
    low, high = [min(values) for values in spread], [max(values) for values in spread]
    panel.fill_between(x, low, high, color=GRADIENT, alpha=0.18, linewidth=0)
    lines = (
        ("gradient_change", GRADIENT, "-", "gradients (band: all layers)"),
        ("jacobian_change", GRADIENT, "-.", "their Jacobians alone"),
        ("output_change", OUTPUT, "-", "output"),
        ("drt", INK, "--", "(1 + η)^L − 1"),
        ("spectral_drt", QUIET, ":", "DRT in operator norms"),
        ("loss_change", LOSS, "-", "loss (● falls, ○ rises)"),
    )
    for name, color, style, label in lines:
        panel.plot(x, middle(name), color=color, linestyle=style, linewidth=1.3, label=label)
    for step, change in zip(x, map(median, at_each("loss_change")), strict=True):
        face = LOSS if change < 0 else "white"
        panel.plot(step, abs(change), "o", color=LOSS, markerfacecolor=face, markersize=3.5)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(min(x) / 3, min(panel.get_ylim()[1], TOP))
    panel.set_title(f"{network.depth} layers, {network.kind}", color=INK, fontsize=10, loc="left")
    panel.grid(color="#e6e8eb", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#c8ccd2")
    panel.tick_params(colors=QUIET, labelsize=8)
