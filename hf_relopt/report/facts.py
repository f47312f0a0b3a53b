"""What a run was, from whichever of its files says so."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_relopt.plans.entries import OPTIMIZERS
from hf_relopt.report.numbers import is_number, is_step, number_or_nan, words
from hf_relopt.report.run_files import Run

Facts = list[tuple[str, str]]
UNKNOWN = "unknown optimizer"
_LINK = re.compile(r"\[([^\]]*)\]\([^)\s]*\)")  # of Markdown, as model cards have them


def optimizer_name(run: Run) -> str:
    """As in --optim; "unknown optimizer" if no file says it."""
    found = (
        run.known("optimizer", "name")
        or run.known("recipe", "optim", of=run.recipe)
        or (run.telemetry.optimizer if run.telemetry else None)
    )
    return str(found) if found else UNKNOWN


def is_ours(run: Run) -> bool | None:
    """Whether the optimizer is one of hf_relopt's, whose steps can be measured; None: unknown."""
    name = optimizer_name(run)
    return None if name == UNKNOWN else name in OPTIMIZERS


def model_name(run: Run) -> str:
    """Class and name of the model; "unknown model" if no file says it."""
    classes = run.config.get("architectures")
    kind = run.known("model", "class") or (
        classes[0] if isinstance(classes, list) and classes else ""
    )
    name = run.known("model", "name_or_path") or run.known(
        "recipe", "model_name_or_path", of=run.recipe
    )
    return ", ".join(str(each) for each in (kind, name) if each) or "unknown model"


def seconds_of(run: Run) -> float | None:
    """Wall time of training."""
    logged = [run.series(name) for name in ("train_runtime", "seconds")]
    ends = [series.last[1] for series in logged if series is not None and series.last]
    said = [run.known("seconds"), run.recipe.get("seconds"), *ends, _by_telemetry(run)]
    known = [float(each) for each in said if is_number(each) and number_or_nan(each) >= 0]
    # The record of a run that still trains, or was killed, is as old as its last checkpoint.
    if run.known("finished") is False:
        return max(known, default=None)
    return known[0] if known else None


def _by_telemetry(run: Run) -> float | None:
    if run.telemetry is None or not len(run.telemetry.steps):
        return None
    spent = run.telemetry.times - run.telemetry.since[:, 1]
    return float(np.nansum(spent)) if np.isfinite(spent).any() else None


def duration(seconds: float) -> str:
    """A time to read."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def is_finished(run: Run) -> bool | None:
    """Whether the run came to its end; None if no file says it."""
    for found in (run.known("finished"), run.recipe.get("finished")):
        if isinstance(found, bool):
            return found
    planned = most_steps(run)
    return None if planned is None else run.steps >= planned


def most_steps(run: Run) -> int | None:
    """The steps that the run was to take."""
    logged = run.log.state.get("max_steps") if run.log else None
    for found in (run.known("training", "max_steps"), logged):
        if is_step(found) and found > 0:
            return found
    return None


def peak_lr(run: Run) -> float | None:
    """The largest learning rate."""
    asked = run.known("recipe", "learning_rate", of=run.recipe)
    for found in map(number_or_nan, (run.known("training", "peak_lr"), asked)):
        if np.isfinite(found):
            return found
    series = run.series("learning_rate")
    if series is None or not np.isfinite(series.values).any():
        return None
    return float(np.nanmax(series.values))


def facts_of(run: Run) -> Facts:
    """Names and values for the page, without those that are not known."""
    training, recipe = run.known("training"), run.known("recipe", of=run.recipe)
    training = training if isinstance(training, dict) else {}
    recipe = recipe if isinstance(recipe, dict) else {}
    log = run.log.state if run.log else {}
    lr = peak_lr(run)
    rows: list[tuple[str, Any]] = [
        ("Optimizer", _optimizer(run)),
        ("Options", _pairs(run.known("optimizer", "options")) or recipe.get("optim_args")),
        ("Peak learning rate", None if lr is None else words(lr)),
        ("Schedule", training.get("schedule") or recipe.get("lr_scheduler_type")),
        ("Warm-up", _steps(training.get("warmup_steps", recipe.get("warmup_steps")))),
        ("Model", _model(run)),
        ("Began with", run.known("base_model")),
        ("Epochs", training.get("epochs")),
        (
            "Sequences per step",
            _batch(training) or recipe.get("sequences_per_step") or log.get("train_batch_size"),
        ),
        ("Precision", training.get("precision") or _precision(recipe)),
        ("Seed", training.get("seed", recipe.get("seed"))),
        ("Data seed", training.get("data_seed")),
        ("Launch mode", _launch(run)),
        ("Hardware", _hardware(run)),
        ("Versions", _pairs(run.known("versions"))),
        ("Commit", _commit(run)),
        ("Started", _started(run)),
    ]
    return [(name, _shown(value)) for name, value in rows if value not in (None, "", [], {})]


def command_of(run: Run) -> str:
    """The command that started the run; empty if no file says it."""
    return str(run.known("command") or run.recipe.get("command") or "")


def _optimizer(run: Run) -> str:
    said = run.known("optimizer", "words")
    sentence = "; ".join(map(str, said)) if isinstance(said, list) else ""
    sentence = _LINK.sub(r"\1", sentence)
    return ": ".join(each for each in (optimizer_name(run), sentence) if each)


def _model(run: Run) -> str:
    parts = [model_name(run)]
    total, trained = run.known("model", "parameters"), run.known("model", "trainable")
    if is_number(total):
        parts.append(f"{total:,} parameters")
    if is_number(trained) and trained != total:
        parts.append(f"{trained:,} of them trained")
    if run.known("model", "dtype"):
        parts.append(str(run.known("model", "dtype")))
    return ", ".join(parts)


def _launch(run: Run) -> str:
    launch = run.known("launch")
    if not isinstance(launch, dict):
        return ""
    parts = [str(launch.get("mode") or "")]
    if is_number(launch.get("processes")) and launch["processes"] > 1:
        parts.append(f"{launch['processes']} processes")
    parts.append(str(launch.get("backend") or ""))
    return ", ".join(part for part in parts if part)


def _hardware(run: Run) -> str:
    found = run.known("hardware")
    if not isinstance(found, dict):
        return ""
    count = found.get("count")
    device = str(found.get("device") or "")
    parts = [f"{count} × {device}" if is_number(count) and count > 1 else device]
    parts.append(str(found.get("cpu") or ""))
    memory = found.get("memory_gb")
    parts.append(f"{words(float(memory))} GB" if is_number(memory) else "")
    return ", ".join(dict.fromkeys(part for part in parts if part))


def _batch(training: dict[str, Any]) -> str:
    whole = training.get("sequences_per_step")
    each, times = (
        training.get(n) for n in ("per_device_batch_size", "gradient_accumulation_steps")
    )
    if not is_number(whole):
        return ""
    accumulated = f", {times} accumulated" if is_number(times) and times > 1 else ""
    return f"{whole:,} ({each} per device{accumulated})" if is_number(each) else f"{whole:,}"


def _precision(recipe: dict[str, Any]) -> str:
    if "bf16" not in recipe:
        return ""
    return "bf16" if recipe.get("bf16") else "fp16" if recipe.get("fp16") else "full"


def _commit(run: Run) -> str:
    commit = run.known("git", "commit")
    return (
        f"{commit}{', with local changes' if run.known('git', 'dirty') else ''}" if commit else ""
    )


def _started(run: Run) -> str:
    said = run.known("started")
    times = run.telemetry.since[:, 1] if run.telemetry is not None else np.zeros(0)
    if said or not len(times) or not np.isfinite(times[0]):
        return str(said or "")
    try:
        moment = datetime.datetime.fromtimestamp(float(times[0]), datetime.timezone.utc)
    except (OverflowError, OSError, ValueError):
        return ""
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _steps(given: object) -> str:
    """Steps, or below one a share of them, as the Trainer reads it."""
    value = number_or_nan(given)
    if not np.isfinite(value):
        return ""
    return (
        "none"
        if value == 0
        else f"{words(100 * value)} % of the steps"
        if value < 1
        else f"{words(value)} steps"
    )


def _pairs(given: object) -> str:
    if not isinstance(given, dict):
        return ""
    return ", ".join(
        f"{name} {_shown(value)}" for name, value in given.items() if value is not None
    )


def _shown(value: object) -> str:
    if isinstance(value, bool) or not is_number(value):
        items: Iterable[object] = value if isinstance(value, list) else [value]
        return ", ".join(str(item) for item in items)
    return words(float(value)) if isinstance(value, float) else f"{value:,}"
