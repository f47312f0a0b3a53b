"""The table and the plot of the task "widths": does one rate suit every size?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer_spec import optimizer_spec
from quality_table import Entry, Record, at_edge, best, entries
from quality_tasks import BASE, SMALLEST, WIDTHS
from run_log import markdown_table

# Optimizer without its rate -> size -> one entry per rate.
Grid = dict[str, dict[str, list[Entry]]]


def grid(records: list[Record]) -> Grid:
    """Runs by optimizer (without its rate) and size, sorted by rate."""
    found: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        name = str(optimizer_spec(record["key"]["optim"]).without("lr"))
        sizes = found.setdefault(name, {})
        sizes.setdefault(record["key"]["size"], []).append(record)
    return {
        name: {size: entries(sizes[size]) for size in WIDTHS if size in sizes}
        for name, sizes in sorted(found.items())
    }


def kept_rate(sizes: dict[str, list[Entry]]) -> float | None:
    """The rate a user would take to every size: the default one; without a run at that, the best
    of the base size; without that, None."""
    for members in sizes.values():
        for entry in members:
            if entry.spec.lr is None:
                return entry.lr
    return best(sizes[BASE]).lr if BASE in sizes else None


def widths_table(records: list[Record]) -> str:
    """One row per optimizer and size."""
    rows = []
    for name, sizes in grid(records).items():
        rate = kept_rate(sizes)
        smallest = best(sizes[SMALLEST]).lr if SMALLEST in sizes else None
        for size, members in sizes.items():
            rows.append([f"`{name}`", size, *_cells(members, rate, smallest)])
    header = ["optimizer", "layers x width", "rates", "best rate", "loss", "kept rate"]
    header += ["loss there", "minus best", f"best rate / best at {SMALLEST}", "seeds"]
    return markdown_table(header, rows)


def _cells(members: list[Entry], rate: float | None, smallest: float | None) -> list[str]:
    top = best(members)
    kept = next((entry for entry in members if entry.lr == rate), None)
    cells = [
        str(len({entry.lr for entry in members})),
        f"{top.lr:g}" + (" (edge)" if at_edge(top, members) else ""),
        f"{top.result():.3f}",
        f"{rate:g}" if rate is not None else "",
    ]
    if kept is None:
        cells += ["", ""]
    else:
        seeds = kept.runs.keys() & top.runs.keys()
        gap = kept.result(seeds) - top.result(seeds)
        cells += [f"{kept.result():.3f}", f"{gap:+.3f}"]
    cells.append(f"{top.lr / smallest:.2g}" if smallest else "")
    return [*cells, str(len(top.runs))]


def plot_widths(path: Path, records: list[dict[str, Any]], unit: str) -> None:
    """Loss against rate, one picture per optimizer, one line per size; a ring at the kept rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = grid(records)
    figure, pictures = pyplot.subplots(
        1, len(found), figsize=(5 * len(found), 4), sharey=True, squeeze=False
    )
    for axes, (name, sizes) in zip(pictures[0], found.items(), strict=True):
        rate = kept_rate(sizes)
        for size, members in sizes.items():
            points = [(entry.lr, entry.result()) for entry in members]
            (line,) = axes.plot(*zip(*points, strict=True), marker=".", label=size)
            kept = [point for point in points if point[0] == rate]
            if kept:
                axes.plot(
                    *kept[0], marker="o", markersize=9, fillstyle="none", color=line.get_color()
                )
        axes.set(xscale="log", xlabel="rate", title=name)
        axes.legend(fontsize=8, title="layers x width")
    pictures[0][0].set_ylabel(f"validation loss, {unit}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
