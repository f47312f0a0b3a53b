"""What a finished run shows: the last lines, the loss curve, the demo's record to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from progress_lines import duration
from run_folder import RunFolder, whole_file

matplotlib.use("Agg")  # before pyplot, which would look for a window
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

FILES = (
    ("model", "model.safetensors"),
    ("adapter", "adapter_model.safetensors"),
    ("card", "README.md"),
    ("loss curve", "loss_curve.png"),
    ("history", "trainer_state.json"),
    ("layers", "telemetry.jsonl"),
)
SHOWN_LINES = 40
WIDTH = 100
START_OVER = ("start over", "the same command with --overwrite_output_dir")
FEW = 30  # points; each is marked, since a line through one or two shows next to nothing
TRAIN, VALIDATION, QUIET, INK = "#2a6fbb", "#d1495b", "#8a8f98", "#22262e"
# Of roles, in their order: no two of them alike for eyes that see red and green alike.
ROLE_COLORS = ("#2a6fbb", "#e08e0b", "#4a9d7c", "#b05aa8", "#7a5c3e", "#5aa9d6", "#8a8f98")


def print_summary(folder: RunFolder, metric: str, *, again: bool) -> None:
    """Print the summary of a finished run from its record.

    Args:
        folder: of a finished run.
        metric: the evaluation metric to show, as in "eval_perplexity".
        again: whether this start found the run finished and did nothing.
    """
    record = folder.record
    if again:
        print(f"\nThe run in {folder.path} is finished; nothing was changed.")
    name = metric.removeprefix("eval_").replace("_", " ")
    ends = [record[when].get(metric) for when in ("before", "after")]
    measured = [_shown(value) for value in ends if isinstance(value, (int, float))]
    print(
        f"\nDone: {record['steps']:,} step{'s' if record['steps'] != 1 else ''} in "
        f"{duration(record['seconds'])}, "
        f"validation {name} {' -> '.join(measured)}\n"
    )
    for what, file in FILES:
        if (folder.path / file).exists():
            print(f"  {what:<11} {folder.path / file}")
    if record.get("sample"):
        print("\nWhat it writes now:\n")
        lines = str(record["sample"]).splitlines()
        print("\n".join(f"  | {line}".rstrip() for line in lines[:SHOWN_LINES]))
    if lines := comparison(record):
        print("\n" + "\n".join(lines))
    print("\nTry next:")
    looks = [
        ("see how it trained", f"hf-relopt report {folder.path}"),
        ("see it beside another", f"hf-relopt compare {folder.path} OTHER"),
    ]
    for words, command in [*record.get("hints", []), *looks, START_OVER]:
        _print_hint(str(words), str(command))


def _print_hint(words: str, command: str) -> None:
    """Print a hint on one line if it is short; a long command gets its own line, easy to copy."""
    line = f"  {words:<22} {command}"
    print(line if len(line) <= WIDTH else f"  {words}:\n    {command}")


def _shown(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4f}"


def draw_loss_curve(log_history: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draw a Trainer's log as a PNG: loss, learning rate, and telemetry by role if there is some.

    Args:
        log_history: as in TrainerState.
        path: the file to write; it appears complete or not at all.
        title: the line above the picture.
    """
    train = _series(log_history, "loss")
    validation = _series(log_history, "eval_loss")
    rate = _series(log_history, "learning_rate")
    updates, bounds = (_by_role(log_history, name) for name in ("relative_update", "at_bound"))
    heights = [5, *([2, 1.2] if updates else []), 1]
    figure, (top, *middle, bottom) = pyplot.subplots(
        len(heights), 1, sharex=True, figsize=(8, 5.2 + 2.4 * bool(updates)), dpi=150,
        layout="constrained", gridspec_kw={"height_ratios": heights},
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
    if middle:
        _draw_roles(middle[0], updates, "relative\nupdate")
        if any(value > 0 for points in updates.values() for _, value in points):
            middle[0].set_yscale("log")
        middle[0].legend(frameon=False, loc="lower left", fontsize=8, ncols=4)
        _draw_roles(middle[1], bounds, "at\nbound")
        middle[1].set_ylim(-0.05, 1.05)
        middle[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    bottom.set_ylabel("learning\nrate", color=INK)
    bottom.set_xlabel("optimizer step", color=INK)
    bottom.set_ylim(bottom=0)
    for axes in (top, *middle, bottom):
        _calm(axes)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished)
    pyplot.close(figure)


def _by_role(log_history: list[dict[str, Any]], name: str) -> dict[str, list[tuple[int, float]]]:
    """A metric of each role, as in "relative_update/matrix"."""
    found = {key: None for entry in log_history for key in entry if key.startswith(f"{name}/")}
    return {key.partition("/")[2]: _series(log_history, key) for key in found}


def _draw_roles(axes: Axes, roles: Mapping[str, list[tuple[int, float]]], label: str) -> None:
    for place, (role, points) in enumerate(roles.items()):
        _plot(axes, points, ROLE_COLORS[place % len(ROLE_COLORS)], role, linewidth=1.3)
    axes.set_ylabel(label, color=INK)


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


# The demo's results with other optimizers; shown after a run with the same settings.
RECORD = "benchmarks/results/demo_cpu_202611.md"
SEEDS = (42, 43)
PYTHON = "3.11.7"  # whose standard library was the text
# Sequences to train on; the library of another Python is another text, but about as long.
SEQUENCES, TOLERANCE = 20313, 0.15


@dataclass(frozen=True)
class Row:
    """One optimizer of the record.

    Attributes:
        words: its name in the summary.
        optim: its name.
        lr: its learning rate; None: its default.
        warmup: share of the steps in which the learning rate rises.
        perplexity: on the validation part, mean of SEEDS.
    """

    words: str
    optim: str
    lr: float | None
    warmup: float
    perplexity: float

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        """Whether a run with these settings is one of this row's."""
        mine = (self.optim, self.lr, self.warmup)
        names = ("optim", "learning_rate", "warmup_steps")
        return mine == tuple(settings.get(name) for name in names)


ROWS: tuple[Row, ...] = (
    Row("fromage_spectral, no learning rate set", "fromage_spectral", None, 0.0, 49.5),
    Row("AdamW 0.002, the best of three", "adamw_torch", 0.002, 0.1, 94.1),
    Row("Fromage 0.03, the paper's rule", "fromage", 0.03, 0.0, 166.7),
)
# What a run's record must say to be one of the record's, besides the optimizer and its seed; all
# else is not given there.
SETTINGS: dict[str, Any] = {
    "vocab_size": 4096, "validation_share": 0.05, "max_steps": 400, "num_train_epochs": 3.0,
    "weight_decay": 0.0, "bf16": False, "fp16": False, "lr_scheduler_type": "linear",
    "sequences_per_step": 16,
}  # fmt: skip
_APART = {"optim", "learning_rate", "warmup_steps", "seed", "max_grad_norm"}


def comparison(record: Mapping[str, Any]) -> list[str]:
    """Lines that compare a finished run with the record; none unless it is one of its runs.

    Args:
        record: of the run, as run.json holds it.
    """
    settings = record.get("recipe", {})
    if record.get("steps") != SETTINGS["max_steps"] or settings.get("seed") not in SEEDS:
        return []
    if not any(row.is_of(settings) for row in ROWS) or _apart_from(settings) != SETTINGS:
        return []
    if abs(record.get("sequences", 0) - SEQUENCES) > TOLERANCE * SEQUENCES:
        return []
    width = max(len(row.words) for row in ROWS)
    return [
        f"The same {record['steps']} steps with other optimizers, mean of {len(SEEDS)} seeds "
        f"({RECORD}; Python {PYTHON}):",
        *(f"  {row.words:<{width}}  perplexity {row.perplexity:6.1f}" for row in ROWS),
    ]


def _apart_from(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in settings.items() if name not in _APART and value is not None
    }
