"""The loss of a run as a picture: training and validation above, the learning rate below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from run_folder import whole_file

matplotlib.use("Agg")  # before pyplot, which would look for a window
from matplotlib import pyplot
from matplotlib.axes import Axes

FEW = 30  # points; each is marked, since a line through one or two shows next to nothing
TRAIN, VALIDATION, QUIET, INK = "#2a6fbb", "#d1495b", "#8a8f98", "#22262e"


def draw_loss_curve(log_history: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draw a Trainer's log as a PNG.

    Args:
        log_history: as in TrainerState.
        path: the file to write; it appears complete or not at all.
        title: the line above the picture.
    """
    train = _series(log_history, "loss")
    validation = _series(log_history, "eval_loss")
    rate = _series(log_history, "learning_rate")
    figure, (top, bottom) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 5.2), dpi=150, layout="constrained",
        gridspec_kw={"height_ratios": (5, 1)},
    )  # fmt: skip
    figure.suptitle(title, x=0.02, ha="left", color=INK, fontsize=12, fontweight="bold")
    _plot(top, train, TRAIN, "training", linewidth=1.6)
    _plot(top, validation, VALIDATION, "validation", marker="o", markersize=4, linewidth=1.2)
    _name_the_end(top, validation or train, VALIDATION if validation else TRAIN)
    _plot(bottom, rate, QUIET, "learning rate", linewidth=1.6)
    top.set_ylabel("loss, nats", color=INK)
    if not (train or validation):
        top.text(0.5, 0.5, "nothing was logged", transform=top.transAxes, ha="center", color=QUIET)
    else:
        top.legend(frameon=False, loc="upper right")
    bottom.set_ylabel("learning\nrate", color=INK)
    bottom.set_xlabel("optimizer step", color=INK)
    bottom.set_ylim(bottom=0)
    for axes in (top, bottom):
        _calm(axes)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished)
    pyplot.close(figure)


def _series(log_history: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(entry["step"], float(entry[name])) for entry in log_history if name in entry]


def _plot(
    axes: Axes, points: list[tuple[int, float]], color: str, label: str, **style: Any
) -> None:
    if points:
        steps, values = zip(*points, strict=True)
        if len(points) < FEW:
            style = {"marker": "o", "markersize": 4, **style}
        axes.plot(steps, values, color=color, label=label, **style)


def _name_the_end(axes: Axes, points: list[tuple[int, float]], color: str) -> None:
    if points:
        axes.annotate(
            f"{points[-1][1]:.3f}",
            points[-1],
            xytext=(0, 9),
            textcoords="offset points",
            ha="right",
            color=color,
            fontweight="bold",
        )


def _calm(axes: Axes) -> None:
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8ccd2")
    axes.tick_params(colors=QUIET, labelsize=9)
    axes.margins(x=0.02)
