"""The picture in a card: training and validation loss against steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_relopt.hf.run_files import is_finite
from hf_relopt.whole_file import whole_file

CURVE = "relopt_loss.png"
FEW = 30  # points: each is marked, since a line through one or two shows next to nothing
SERIES = (("loss", "training", "#2a6fbb"), ("eval_loss", "validation", "#d1495b"))
QUIET, INK = "#8a8f98", "#22262e"


def draw_curve(log: Iterable[Mapping[str, Any]], path: Path, title: str) -> bool:
    """Draw a log as a PNG; it appears complete or not at all.

    Args:
        log: as in TrainerState; values that are not finite leave gaps.
        path: the file to write.
        title: the line above the picture.

    Returns:
        Whether there was something to draw.
    """
    entries = list(log)
    found = {name: _points(entries, name) for name, *_ in SERIES}
    if not any(found.values()):
        return False
    # Not pyplot: the script that trains has its own figures and its own backend.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, label, color in SERIES:
        if points := found[name]:
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < FEW else None
            axes.plot(steps, values, color=color, label=label, marker=marker, markersize=4)
    figure.suptitle(title, x=0.02, ha="left", color=INK, fontsize=12, fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.legend(frameon=False)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=QUIET, labelsize=9)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return True


def _points(log: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Steps and values; a value that is not finite is a gap, unless all are."""
    points = [
        (entry["step"], float(entry[name]) if is_finite(entry[name]) else float("nan"))
        for entry in log
        if name in entry and isinstance(entry.get("step"), int)
    ]
    return points if any(is_finite(value) for _, value in points) else []
