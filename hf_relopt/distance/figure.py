"""The picture of a distance: how far each layer moved, in network order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_relopt.distance.table import trust
from hf_relopt.errors import ConfigError
from hf_relopt.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_relopt.distance.result import Distance

MATRIX, VECTOR, QUIET, INK = "#2a6fbb", "#d1495b", "#8a8f98", "#22262e"
LANDMARKS = 20
KINDS = ((True, MATRIX, "matrices"), (False, VECTOR, "biases, norm weights"))


def check_place(path: Path) -> None:
    """Refuse a place where no picture can be written.

    Raises:
        ConfigError: a suffix that matplotlib does not know, or no such folder.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = sorted(FigureCanvasAgg.filetypes)
    if path.suffix.lstrip(".").lower() not in known:
        raise ConfigError(f"{path} has no suffix of a picture; use one of {', '.join(known)}.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}. Make it.")


def draw(distance: Distance, path: Path) -> Path:
    """Write the picture; it appears complete or not at all.

    Raises:
        ConfigError: a suffix that matplotlib does not know, or a distance without layers.
    """
    from matplotlib.figure import Figure

    if not distance.layers:
        raise ConfigError("there is no layer to draw: every tensor stands apart.")
    check_place(path)
    figure = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
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
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix.lstrip("."))
    return path


def _scatter(axes: Axes, distance: Distance) -> None:
    size = 26 if len(distance.layers) < 200 else 10
    moved = [(n, layer) for n, layer in enumerate(distance.layers) if layer.relative_update > 0]
    for matrices, color, label in KINDS:
        points = [(n, x.relative_update) for n, x in moved if x.is_matrix is matrices]
        if points:
            places, values = zip(*points, strict=True)
            axes.scatter(places, values, s=size, color=color, label=label, linewidths=0)
    if moved:
        axes.set_yscale("log")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    else:
        axes.text(0.5, 0.5, "nothing moved", transform=axes.transAxes, ha="center", color=QUIET)


def _calm(axes: Axes) -> None:
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8ccd2")
    axes.tick_params(colors=QUIET, labelsize=8)


def _landmarks(names: list[str]) -> tuple[list[int], list[str]]:
    """Where each block of the network begins, as places and words, as many as there is room for."""
    places: list[int] = []
    found: list[str] = []
    last = ""
    for place, name in enumerate(names):
        words = name.split(".")
        number = next((n for n, word in enumerate(words) if word.isdigit()), None)
        block = words[0] if number is None else ".".join(words[: number + 1])
        if block != last and (not places or place - places[-1] >= len(names) / LANDMARKS):
            places.append(place)
            found.append(block if len(block) <= 24 else f"…{block[-23:]}")
        last = block
    return places, found
