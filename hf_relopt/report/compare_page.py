"""The page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_relopt.report import facts
from hf_relopt.report.chart import Chart, HeatMap, Line
from hf_relopt.report.comparison import Setting, names_of, results_of, settings_of
from hf_relopt.report.markup import Markup, table, tag
from hf_relopt.report.page import charts, header, notice, section, whole_page
from hf_relopt.report.run_charts import metric_names, spans_orders, speed, validation_losses
from hf_relopt.report.run_files import Run, Series
from hf_relopt.report.run_page import rowed
from hf_relopt.report.svg_chart import chart_figure, swatch

NOT_SAID = "–"


def compare_page(runs: Sequence[Run]) -> str:
    """The page's text."""
    names = names_of([run.path for run in runs])
    settings = settings_of(runs)
    title = " and ".join(names) if len(names) == 2 else f"{len(names)} runs"
    lead = ", ".join(dict.fromkeys(facts.optimizer_name(run) for run in runs))
    drawn = comparing_charts(runs, names)
    parts = [
        header("Comparison of runs", title, lead),
        section("Results", [_results(runs, names)]),
        section("Settings that differ", [_differing(settings, names)]),
        notice("What is missing", _missing(runs, names)),
        section("Curves", charts([chart_figure(each) for each in drawn])),
        section("Commands", _commands(runs, names)),
    ]
    return whole_page(f"{title}: comparison", parts)


def comparing_charts(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """One chart per metric, with a curve for each run that has it."""
    metrics = list(dict.fromkeys(name for run in runs for name in metric_names(run)))
    losses = list(dict.fromkeys(name for run in runs for name in validation_losses(run)))
    wanted = [("loss", "Training loss"), *((name, _title(name)) for name in losses)]
    wanted += [(name, _title(name)) for name in metrics[:8]]
    found = [_chart(name, title, runs, names) for name, title in wanted]
    found.insert(1 + len(losses), _against_time(runs, names))
    found += [
        _chart("learning_rate", "Learning rate", runs, names, from_zero=True),
        _chart("relative_update", "Relative update", runs, names, log=True),
        _chart("at_bound", "Share at the bound", runs, names, from_zero=True),
        _chart("grad_norm", "Gradient norm", runs, names),
        _chart("step_drt", "Deep relative trust of each step", runs, names, log=True),
        _chart("drt_since_start", "Distance from the initial network", runs, names, from_zero=True),
    ]
    there = [each for each in found if each is not None]
    return [each for each in rowed(there) if not isinstance(each, HeatMap)]


def _title(name: str) -> str:
    plain = name.removeprefix("eval_").replace("_", " ")
    return "Validation loss" if name == "eval_loss" else f"Validation: {plain}"


def _chart(
    name: str,
    title: str,
    runs: Sequence[Run],
    names: Sequence[str],
    *,
    log: bool = False,
    from_zero: bool = False,
) -> Chart | None:
    lines = [
        Line(words, series.steps, series.values, look, marked=name.startswith("eval_"))
        for look, (run, words) in enumerate(zip(runs, names, strict=True))
        if (series := run.series(name)) is not None
    ]
    if not lines:
        return None
    log = log or (not from_zero and spans_orders(lines))
    return Chart(
        name, title, lines, log=log, from_zero=from_zero, wide=name in ("loss", "eval_loss")
    )


def _against_time(runs: Sequence[Run], names: Sequence[str]) -> Chart | None:
    """Loss against minutes of training, for the runs whose files hold times."""
    lines = []
    for look, (run, words) in enumerate(zip(runs, names, strict=True)):
        times, loss = _minutes(run), run.series("loss")
        if times is None or loss is None:
            continue
        at = dict(zip(times.steps.tolist(), times.values.tolist(), strict=True))
        chosen = np.array([at.get(step, np.nan) for step in loss.steps.tolist()])
        known = np.isfinite(chosen)
        if known.any():
            lines.append(Line(words, chosen[known], loss.values[known], look))
    if len(lines) < 2:
        return None
    note = "" if len(lines) == len(runs) else "Only of the runs whose files hold times."
    return Chart("loss_by_time", "Training loss by time", lines, log=spans_orders(lines), note=note,
                 across="minutes", wide=True)  # fmt: skip


def _minutes(run: Run) -> Series | None:
    """Minutes of training at each logged step; the time between two starts is left out."""
    pace = speed(run)
    if run.telemetry is not None and pace is not None:
        spent = run.telemetry.times - run.telemetry.since[:, 1]
        return Series("minutes", run.telemetry.steps, np.nancumsum(np.maximum(spent, 0)) / 60)
    times = run.series("seconds")
    return None if times is None else Series("minutes", times.steps, times.values / 60)


def _heads(names: Sequence[str]) -> list[Markup]:
    return [tag("span", swatch(look), name, class_="heading") for look, name in enumerate(names)]


def _results(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    found = [results_of(run) for run in runs]
    rows = dict.fromkeys(name for result in found for name in result)
    body = [(name, *(result.get(name, NOT_SAID) for result in found)) for name in rows]
    return table(("", *_heads(names)), body, label="Results")


def _differing(settings: Sequence[Setting], names: Sequence[str]) -> Markup:
    differ = [each for each in settings if each.differs]
    same = [each for each in settings if not each.differs and each.is_everywhere]
    some = [each for each in settings if not each.differs and not each.is_everywhere]
    parts: list[Markup] = []
    if differ:
        parts.append(_table(differ, names, "Settings that differ"))
    else:
        parts.append(tag("p", "No setting that two of the runs hold differs."))
    parts.append(_folded(same, names, "the same in all runs"))
    parts.append(_folded(some, names, "known of some runs only"))
    return tag("div", *parts)


def _table(settings: Sequence[Setting], names: Sequence[str], label: str) -> Markup:
    rows = [(each.name, *(NOT_SAID if v is None else v for v in each.values)) for each in settings]
    return table(("", *_heads(names)), rows, label=label)


def _folded(settings: Sequence[Setting], names: Sequence[str], what: str) -> Markup:
    if not settings:
        return Markup("")
    count = f"{len(settings)} setting{'s' if len(settings) > 1 else ''} {what}"
    return tag("details", tag("summary", count), _table(settings, names, count))


def _missing(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    notes = [
        f"{name}: {fault}" for run, name in zip(runs, names, strict=True) for fault in run.faults
    ]
    for file, has in (
        ("loss", lambda run: run.series("loss") is not None),
        ("validation loss", lambda run: bool(validation_losses(run))),
        ("relative update", lambda run: run.series("relative_update") is not None),
    ):
        without = [name for run, name in zip(runs, names, strict=True) if not has(run)]
        if without:
            notes.append(f"No {file} was logged: {', '.join(without)}.")
    unmeasured = [run for run in runs if run.series("relative_update") is None]
    if any(facts.is_ours(run) is not False for run in unmeasured):
        notes.append(
            "With an optimizer of hf_relopt RelOptTrainer logs the relative update; for another "
            "Trainer add RelOptCallback, or start the script with `hf-relopt run --telemetry`."
        )
    return notes


def _commands(runs: Sequence[Run], names: Sequence[str]) -> list[Markup]:
    return [
        tag("div", tag("h3", name), tag("pre", tag("code", command)), class_="command")
        for run, name in zip(runs, names, strict=True)
        if (command := facts.command_of(run))
    ]
