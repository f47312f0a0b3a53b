"""The picture of a distance: how far each layer moved, in network order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hf_relopt.distance.table import trust
from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_relopt.distance.result import Distance

MATRIX, VECTOR, QUIET, INK = "#2a6fbb", "#d1495b", "#8a8f98", "#22262e"
KINDS = ((True, MATRIX, "matrices"), (False, VECTOR, "biases, norm weights"))


def draw(distance: Distance, path: Path) -> Path:
    """Write the picture; it appears complete or not at all.

    Raises:
        ConfigError: a suffix that matplotlib does not know, or a distance without layers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not distance.layers:
        raise ConfigError("there is no layer to draw: every tensor stands apart.")
    figure = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
    known = FigureCanvasAgg(figure).get_supported_filetypes()
    kind = path.suffix.lstrip(".").lower()
    if kind not in known:
        raise ConfigError(
            f"{path} has no suffix of a picture; use one of {', '.join(sorted(known))}."
        )
    axes = figure.subplots()
    _scatter(axes, distance)
    places, words = _landmarks([layer.name for layer in distance.layers])
    axes.set_xticks(places, words, rotation=35, ha="right", fontsize=8)
    axes.set_xlim(-1, len(distance.layers))
    axes.set_ylabel("relative update  |ΔW| / |W|", color=INK)
    value = trust(distance.drt, distance.log_drt)
    title = f"Deep relative trust {value} over {distance.depth} matrices"
    title += " (partial)" if distance.partial else ""
    figure.suptitle(title, x=0.02, ha="left", color=INK, fontsize=12, fontweight="bold")
    _calm(axes)
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, format=kind)
    os.replace(unfinished, path)
    return path


def _scatter(axes: Axes, distance: Distance) -> None:
    size = 26 if len(distance.layers) < 200 else 10
    moved = [(n, layer) for n, layer in enumerate(distance.layers) if layer.relative_update > 0]
    for matrices, color, label in KINDS:
        points = [(n, x.relative_update) for n, x in moved if x.is_matrix is matrices]
        if points:
            axes.scatter(*zip(*points, strict=True), s=size, color=color, label=label, linewidths=0)
    if moved:
        axes.set_yscale("log")
        axes.legend(frameon=False, ncols=2, loc="upper right")
    else:
        axes.text(0.5, 0.5, "nothing moved", transform=axes.transAxes, ha="center", color=QUIET)


def _calm(axes: Axes) -> None:
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8ccd2")
    axes.tick_params(colors=QUIET, labelsize=8)


def _landmarks(names: list[str]) -> tuple[list[int], list[str]]:
    """Where each block of the network begins, as places and words; at most 24 of them."""
    begins: list[tuple[int, str]] = []
    last = ""
    for place, name in enumerate(names):
        words = name.split(".")
        numbers = [n for n, word in enumerate(words) if word.isdigit()]
        block = ".".join(words[: numbers[0] + 1]) if numbers else ".".join(words[:-1]) or name
        if block != last:
            begins.append((place, block))
            last = block
    step = -(-len(begins) // 24)
    kept = begins[::step]
    return [place for place, _ in kept], [_short(words) for _, words in kept]


def _short(words: str) -> str:
    return words if len(words) <= 24 else "…" + words[-23:]
