"""The report of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hf_relopt.report import facts, run_charts
from hf_relopt.report.chart import Chart, HeatMap
from hf_relopt.report.heat_map import heat_map
from hf_relopt.report.markup import Markup, table, tag, with_code
from hf_relopt.report.numbers import medians, words
from hf_relopt.report.page import (
    charts,
    facts_list,
    header,
    notice,
    section,
    tiles,
    whole_page,
)
from hf_relopt.report.run_files import RECORD, Run
from hf_relopt.report.svg_chart import chart_figure
from hf_relopt.report.svg_heat_map import heat_map_figure
from hf_relopt.report.telemetry_file import NAME as TELEMETRY

WEIGHTS = "The weights"
_MOST_LAYERS = 2000  # rows of the table


def run_page(run: Run) -> str:
    """The page's text."""
    record = facts.facts_of(run)
    command = facts.command_of(run)
    table_of_plan = plan_table(run)
    grouped = figures(run)
    parts = [
        header("Training run", run.name, f"{facts.optimizer_name(run)} · {facts.model_name(run)}"),
        tiles(_tiles(run)),
        notice("Warnings of the run", _warnings(run), warn=True),
        notice("What is missing", [*run.faults, *missing(run)]),
    ]
    for title, drawn in grouped:
        inside = charts([_figure(each) for each in rowed(drawn)])
        inside += _distance_note(run) if inside and title == WEIGHTS else []
        parts.append(section(title, inside))
    parts += [
        section("Each layer", [layer_table(run)] if run.telemetry and run.telemetry.layers else []),
        section("What each weight follows", [table_of_plan] if table_of_plan else []),
        section("The run", [facts_list(record)] if record else []),
        section("Command", [tag("pre", tag("code", command))] if command else []),
    ]
    return whole_page(f"{run.name}: report", parts)


def figures(run: Run) -> list[tuple[str, list[Chart | HeatMap]]]:
    """All figures, by the parts of the page."""
    steps: list[Chart | HeatMap] = list(run_charts.step_charts(run))
    drawn = heat_map(run.telemetry) if run.telemetry is not None else None
    if drawn is not None:
        place = next((at + 1 for at, each in enumerate(steps) if each.key == "relative_update"), 0)
        steps.insert(place, drawn)
    return [
        ("Learning", list(run_charts.learning_charts(run))),
        ("What each step did", steps),
        (WEIGHTS, list(run_charts.weight_charts(run))),
        ("Speed", list(run_charts.speed_charts(run))),
    ]


def rowed(drawn: Sequence[Chart | HeatMap]) -> list[Chart | HeatMap]:
    """The same in rows of two: a chart that would stand alone in its row takes all of it."""
    rows: list[Chart | HeatMap] = []
    waiting: Chart | None = None
    for each in [*drawn, None]:
        alone = each is None or isinstance(each, HeatMap) or each.wide
        if waiting is not None and alone:
            rows[-1] = replace(waiting, wide=True)
        if each is not None:
            rows.append(each)
        waiting = None if alone or waiting is not None or not isinstance(each, Chart) else each
    return rows


def _figure(drawn: Chart | HeatMap) -> Markup:
    return heat_map_figure(drawn) if isinstance(drawn, HeatMap) else chart_figure(drawn)


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    found = []
    for name, title in (("loss", "Training loss"), ("eval_loss", "Validation loss")):
        series = run.series(name)
        if series is not None and series.last is not None:
            step, value = series.last
            best = float(np.nanmin(series.values))
            remark = f"best {words(best)}" if best < value else f"at step {words(step)}"
            found.append((title, words(value), remark))
    most, ended = facts.most_steps(run), facts.is_finished(run)
    state = {True: "finished", False: "not finished", None: ""}[ended]
    of = f"of {most:,}" if most is not None and most != run.steps else ""
    found.append(("Steps", f"{run.steps:,}", ", ".join(each for each in (of, state) if each)))
    seconds = facts.seconds_of(run)
    if seconds is not None:
        found.append(("Time", facts.duration(seconds), ""))
    series = run_charts.speed(run)
    if series is not None:
        found.append(
            ("Speed", words(float(np.nanmedian(series.values))), "steps per second, median")
        )
    elif seconds and run.steps:
        found.append(("Speed", words(run.steps / seconds), "steps per second"))
    return found


def _warnings(run: Run) -> list[str]:
    found = [
        f"Step {step:,}: {text}" for step, text in (run.telemetry.warnings if run.telemetry else ())
    ]
    shown = found[:30]
    if len(found) > len(shown):
        shown.append(f"And {len(found) - len(shown):,} more in {TELEMETRY}.")
    return shown


def missing(run: Run) -> list[str]:
    """What the page cannot show, and how to get it."""
    notes = []
    logged = run.log is not None and run.log.entries
    if not logged and not (run.telemetry and len(run.telemetry.steps)):
        notes.append(
            "Nothing was logged yet. A Trainer writes trainer_state.json with its first "
            "checkpoint; its --logging_steps says how often it logs."
        )
    if run.telemetry is None:
        notes.append(to_get_telemetry(run))
    elif not run.telemetry.layers:
        notes.append(f"{TELEMETRY} names no layers, so there is no heat map.")
    elif not len(run.telemetry.steps):
        notes.append(f"{TELEMETRY} holds no logged step yet.")
    if not run.record:
        notes.append(
            f"There is no {RECORD}, which RelOptTrainer and hf-relopt run --telemetry write with "
            "any optimizer: the launch mode, the versions and the plan are not known."
        )
    if logged and not run_charts.validation_losses(run):
        notes.append(
            "No evaluation was logged: pass --eval_strategy steps to see the validation loss."
        )
    return notes


def to_get_telemetry(run: Run) -> str:
    """A sentence on who writes the telemetry that is not there."""
    begin = f"There is no {TELEMETRY}: what each step did to each layer is not known."
    if facts.is_ours(run) is False:
        return (
            f"{begin} {facts.optimizer_name(run)} is no optimizer of hf_relopt: its steps are not "
            "measured. `hf-relopt distance` compares two checkpoints of any run."
        )
    return (
        f"{begin} With an optimizer of hf_relopt RelOptTrainer writes it; for another Trainer add "
        "RelOptCallback, or start the script with `hf-relopt run --telemetry`."
    )


def _distance_note(run: Run) -> list[Markup]:
    if run.telemetry is None or run.series("drt_since_start") is not None:
        return []
    text = (
        "The distance from the initial network was not measured. `RelOptCallback(snapshots="
        '"memory")` measures it in each logged step, `hf-relopt distance` between two checkpoints.'
    )
    return [tag("p", with_code(text), class_="note after")]


def plan_table(run: Run) -> Markup | None:
    """What each group of weights follows; None if no file says it."""
    groups = run.known("optimizer", "groups")
    rows: list[tuple[str, str, str, str, str]] = []
    for group in groups if isinstance(groups, list) else []:
        if isinstance(group, dict):
            numbers = (group.get(name) for name in ("lr", "tensors", "parameters"))
            rows.append((str(group.get("role") or ""), str(group.get("follows") or ""),
                         *(_number(each) for each in numbers)))  # type: ignore[arg-type]  # fmt: skip
    if not rows and run.telemetry is not None:
        kinds: dict[tuple[str, str], list[int]] = {}
        for layer in run.telemetry.layers:
            kinds.setdefault((layer.role, layer.follows), []).append(layer.parameters)
        rows = [(*kind, "", f"{len(sizes):,}", f"{sum(sizes):,}") for kind, sizes in kinds.items()]
    if not rows:
        return None
    head = ("Weights", "Follow", "Learning rate", "Tensors", "Parameters")
    return table(head, rows, label="The plan", numbers=(2, 3, 4))


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return words(value)


def layer_table(run: Run) -> Markup:
    """Every layer with what became of it, folded away."""
    telemetry = run.telemetry
    assert telemetry is not None
    median = medians(telemetry.tables["relative_update"], axis=0)
    norms, bound = telemetry.tables["norm"], telemetry.tables["at_bound"]
    rows = []
    for place, layer in enumerate(telemetry.layers[:_MOST_LAYERS]):
        known = norms[np.isfinite(norms[:, place]), place]
        held = bound[np.isfinite(bound[:, place]), place]
        numbers = (median[place], *((known[0], known[-1]) if len(known) else (np.nan, np.nan)))
        shown = (words(float(each)) if np.isfinite(each) else "" for each in numbers)
        at_bound = f"{100 * float(held[-1]):.3g} %" if len(held) else ""
        rows.append((layer.name, layer.role, " × ".join(map(str, layer.shape)), *shown, at_bound))
    count = len(telemetry.layers)
    more = f", the first {_MOST_LAYERS:,} of {count:,}" if count > _MOST_LAYERS else ""
    head = (
        "Layer",
        "Role",
        "Shape",
        "Relative update, median",
        "First norm",
        "Last norm",
        "At bound",
    )
    drawn = table(head, rows, label="All layers", numbers=(3, 4, 5, 6))
    title = f"{count:,} layer{'s' if count != 1 else ''} in network order{more}"
    return tag("details", tag("summary", title), drawn)
