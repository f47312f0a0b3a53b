"""The charts of one run: which metric goes where, and what a reader should know of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from hf_relopt.report.chart import Band, Chart, Line
from hf_relopt.report.numbers import Array, is_step, medians, quantiles
from hf_relopt.report.run_files import Run, Series

_TIMING = ("_runtime", "_per_second", "_time", "_seconds")
# More curves in one chart cannot be told apart.
MOST_ROLES = 12


def learning_charts(run: Run) -> list[Chart]:
    """Loss, learning rate and what evaluations measured."""
    lines = [_line("training", run.series("loss"), 0)]
    for look, name in enumerate(validation_losses(run), 1):
        words = (
            "validation"
            if name == "eval_loss"
            else name.removeprefix("eval_").removesuffix("_loss")
        )
        lines.append(_line(words, run.series(name), look, marked=True))
    lr = _line("learning rate", run.series("learning_rate"), 0)
    charts = [
        _chart("loss", "Loss", lines, wide=True, log=spans_orders(lines)),
        _chart("learning_rate", "Learning rate", [lr], from_zero=True),
    ]
    for name in metric_names(run)[:8]:
        line = _line(name.removeprefix("eval_").replace("_", " "), run.series(name), 0, marked=True)
        title = f"Validation: {name.removeprefix('eval_').replace('_', ' ')}"
        charts.append(_chart(f"validation_{name.removeprefix('eval_')}", title, [line],
                             log=spans_orders([line])))  # fmt: skip
    line = _line("gradient norm", run.series("grad_norm"), 0)
    charts.append(_chart("grad_norm", "Gradient norm", [line], log=spans_orders([line])))
    return [chart for chart in charts if chart is not None]


def step_charts(run: Run) -> list[Chart]:
    """How far steps moved the weights."""
    lines = [_line("all weights together", run.series("relative_update"), 0)]
    table, band = _table(run, "relative_update"), None
    if table is not None and run.telemetry is not None:
        low, middle, high = quantiles(table, (0.1, 0.5, 0.9))
        lines.append(Line("median layer", run.telemetry.steps, middle, 1))
        band = Band("10 % to 90 % of the layers", run.telemetry.steps, low, high)
    else:
        ends = (("10 %", "p10"), ("median", "p50"), ("90 %", "p90"), ("largest", "max"))
        for look, (name, key) in enumerate(ends, 1):
            lines.append(_line(f"layers, {name}", run.series(f"relative_update_{key}"), look))
    if any(lines):
        lines.append(_line("learning rate", run.series("learning_rate"), 7))
    note = "‖ΔW‖ / ‖W‖ of a step. A relative rule keeps it near the learning rate."
    trust = _line("deep relative trust", run.series("step_drt"), 0)
    trust_note = "∏(1 + r) − 1 over the weight matrices: what one step may change of the network."
    charts = [
        _chart("relative_update", "Relative update", lines, log=True, note=note, band=band,
               wide=True, measured=True),
        _by_role(run, "relative_update", "Relative update by role", log=True),
        _chart("step_distance", "Deep relative trust of each step", [trust], log=True,
               note=trust_note),
    ]  # fmt: skip
    return [chart for chart in charts if chart is not None]


def weight_charts(run: Run) -> list[Chart]:
    """What became of the weights."""
    changed = [
        _line("changed by a step", _percent(run.series("changed_entries")), 0),
        _line("not changed, by rounding", _percent(run.series("unchanged_by_rounding")), 1),
        _line("changed since the last snapshot", _percent(run.series("changed_since_snapshot")), 2),
    ]
    distance = _line("deep relative trust", run.series("drt_since_start"), 0)
    skipped = _line("tensors", _where_any(run, "skipped_tensors"), 0)
    charts = [
        _norms(run),
        _chart("distance", "Distance from the initial network", [distance], from_zero=True,
               note="Deep relative trust between the initial weights and those of each step."),
        _by_role(run, "at_bound", "Share at the bound", share=True),
        _chart("changed_entries", "Entries that a step changed", changed, unit="% of entries",
               note="In bfloat16 an entry stays as it is where its update is smaller than half the "
               "distance to the next number."),
        _chart("skipped_tensors", "Skipped tensors", [skipped], from_zero=True,
               note="Their gradient was not finite, so a step left them alone."),
    ]  # fmt: skip
    return [chart for chart in charts if chart is not None]


def speed_charts(run: Run) -> list[Chart]:
    """Throughput, where the files hold times."""
    series = speed(run)
    if series is None:
        return []
    sequences = run.known("training", "sequences_per_step") or run.known(
        "recipe", "sequences_per_step", of=run.recipe
    )
    known = is_step(sequences) and sequences > 0
    per, unit = (sequences, "sequences") if known else (1, "steps")
    line = Line(f"{unit} per second", series.steps, series.values * per, 0)
    note = "From one logged step to the next; evaluations and saving are part of the time."
    chart = _chart("throughput", "Throughput", [line], unit=f"{unit} per second", note=note,
                   from_zero=True, measured=True)  # fmt: skip
    return [chart] if chart else []


def speed(run: Run) -> Series | None:
    """Steps per second between logged steps; None if no file holds times."""
    if run.telemetry is not None and np.isfinite(run.telemetry.steps_per_second).any():
        return Series("steps per second", run.telemetry.steps, run.telemetry.steps_per_second)
    times = run.series("seconds")
    if times is None or len(times.steps) < 2:
        return None
    steps, seconds = np.diff(times.steps), np.diff(times.values)
    values = np.full(len(steps), np.nan)
    np.divide(steps, seconds, out=values, where=seconds > 0)
    return (
        Series("steps per second", times.steps[1:], values) if np.isfinite(values).any() else None
    )


def validation_losses(run: Run) -> list[str]:
    """Names of the losses of evaluations; several if there are several validation sets."""
    return [name for name in run.names if name.startswith("eval_") and name.endswith("loss")]


def metric_names(run: Run) -> list[str]:
    """Names of what else evaluations measured, without times and counts that never change."""
    names = []
    for name in run.names:
        other = name.startswith("eval_") and name not in validation_losses(run)
        series = run.series(name) if other and not name.endswith(_TIMING) else None
        if series is not None and not _is_count(series.values):
            names.append(name)
    return names


def spans_orders(lines: Sequence[Line | None]) -> bool:
    """Whether values differ so much that a linear axis would show one of them alone."""
    values = [line.values for line in lines if line is not None]
    joined = np.concatenate([np.zeros(0), *values])
    known = joined[np.isfinite(joined)]
    return len(known) > 0 and known.min() > 0 and known.max() / 30 > known.min()


def _is_count(values: Array) -> bool:
    return bool(len(values) and (values == values[0]).all() and values[0] == round(values[0]))


def _chart(
    key: str,
    title: str,
    lines: Sequence[Line | None],
    *,
    unit: str = "",
    log: bool = False,
    from_zero: bool = False,
    note: str = "",
    band: Band | None = None,
    wide: bool = False,
    measured: bool = False,
) -> Chart | None:
    """A chart of the lines that there are; None if there is none."""
    there = [line for line in lines if line is not None and len(line.steps)]
    if not there:
        return None
    key = re.sub(r"[^A-Za-z0-9_]+", "_", key)  # it becomes a file's name
    return Chart(
        key, title, there, unit, log, from_zero, note, band=band, wide=wide, measured=measured
    )


def _line(name: str, series: Series | None, look: int, *, marked: bool = False) -> Line | None:
    return None if series is None else Line(name, series.steps, series.values, look, marked)


def _percent(series: Series | None) -> Series | None:
    return None if series is None else Series(series.name, series.steps, 100 * series.values)


def _where_any(run: Run, name: str) -> Series | None:
    series = run.series(name)
    return series if series is not None and np.nansum(series.values) > 0 else None


def _table(run: Run, name: str) -> Array | None:
    """A table of the telemetry that holds any value."""
    table = run.telemetry.tables[name] if run.telemetry is not None else np.zeros((0, 0))
    return table if table.size and np.isfinite(table).any() else None


def _by_role(
    run: Run, name: str, title: str, *, share: bool = False, log: bool = False
) -> Chart | None:
    """One curve per role: from the log by its names, else from the role's layers.

    Args:
        share: for a share of 1: in percent, with one more curve over all weights.
    """
    prefix = f"{name}/"
    logged = {
        key.removeprefix(prefix): run.series(key) for key in run.names if key.startswith(prefix)
    }
    found = logged or _roles(run, name, _means if share else _medians)
    note = "" if logged or not found else "The median layer of each role."
    if share:
        note = "Held by p_bound or p_scale; where many are, the bound decides and not the rule."
    each = list(found.items())[:MOST_ROLES]
    if share:
        each.insert(0, ("all", run.series(name)))
    lines = [
        _line(role, _percent(series) if share else series, look)
        for look, (role, series) in enumerate(each)
    ]
    return _chart(f"{name}_by_role", title, lines, log=log, note=note, measured=True,
                  from_zero=share, unit="%" if share else "")  # fmt: skip


def _means(part: Array) -> Array:
    return np.asarray(np.nanmean(part, axis=1))


def _medians(part: Array) -> Array:
    return medians(part, axis=1)


def _roles(run: Run, name: str, average: Callable[[Array], Array]) -> dict[str, Series]:
    table, telemetry = _table(run, name), run.telemetry
    if table is None or telemetry is None:
        return {}
    found = {}
    for role in dict.fromkeys(layer.role for layer in telemetry.layers):
        places = [at for at, layer in enumerate(telemetry.layers) if layer.role == role]
        part = table[:, places]
        known = np.isfinite(part).any(axis=1)
        values = np.full(len(part), np.nan)
        values[known] = average(part[known])
        if known.any():
            found[role or "no role"] = Series(role, telemetry.steps, values)
    return found


def norm_ratios(table: Array, initial: Array) -> Array:
    """Norms [n, layers] over the initial ones, or the first one that is known of each layer.

    A layer that began at zero, as a bias does, has no ratio: NaN.
    """
    known = np.isfinite(table)
    logged = np.take_along_axis(table, known.argmax(axis=0)[None], axis=0)[0]
    first = np.where(np.isfinite(initial), initial, logged).astype(float)
    ratios = np.full(table.shape, np.nan)
    np.divide(table, first, out=ratios, where=known & (first > 0))
    return ratios


def _norms(run: Run) -> Chart | None:
    if (table := _table(run, "norm")) is None or run.telemetry is None:
        return None
    ratios = norm_ratios(table, run.telemetry.initial_norms)
    lines: list[Line | None] = []
    for role in list(dict.fromkeys(layer.role for layer in run.telemetry.layers))[:MOST_ROLES]:
        places = [at for at, layer in enumerate(run.telemetry.layers) if layer.role == role]
        values = medians(ratios[:, places], axis=1)
        if np.isfinite(values).any():
            lines.append(Line(role or "no role", run.telemetry.steps, values, len(lines)))
    low, high = quantiles(ratios, (0.1, 0.9))
    band = Band("10 % to 90 % of the layers", run.telemetry.steps, low, high)
    return _chart("norms", "Norm of the weights", lines, unit="times the norm at the start",
                  band=band, note="The median layer of each role.", measured=True)  # fmt: skip
