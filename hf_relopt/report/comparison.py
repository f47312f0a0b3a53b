"""Several runs side by side: their names, the settings that differ, what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_relopt.errors import ConfigError
from hf_relopt.report import facts
from hf_relopt.report.numbers import words
from hf_relopt.report.run_charts import metric_names, speed, validation_losses
from hf_relopt.report.run_files import Run
from hf_relopt.report.svg_chart import LOOKS

# What differs between any two runs and is no setting.
_NO_SETTINGS = {
    "format", "command", "started", "seconds", "finished", "steps", "run_name", "output_dir",
    "logging_dir", "log_history", "global_step", "epoch", "best_global_step", "best_metric",
    "best_model_checkpoint", "total_flos", "num_input_tokens_seen", "stateful_callbacks",
    "is_local_process_zero", "is_world_process_zero", "is_hyper_param_search", "trial_name",
    "trial_params", "words", "groups",
}  # fmt: skip
_MISSING = object()


@dataclass(frozen=True)
class Setting:
    """One setting of all runs.

    Attributes:
        name: as the files name it.
        values: one per run, as text; None where no file of the run says it.
    """

    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        """Whether two runs say different things."""
        return len({value for value in self.values if value is not None}) > 1

    @property
    def is_everywhere(self) -> bool:
        """Whether all runs say it."""
        return None not in self.values


def check_paths(paths: Sequence[Path]) -> None:
    """Refuse, before anything is read, what cannot be compared.

    Raises:
        ConfigError: a single run, a folder named twice, or more runs than can be told apart.
    """
    if len(paths) < 2:
        one = paths[0] if paths else "RUN_DIR"
        raise ConfigError(f"compare takes two runs or more. For one run: hf-relopt report {one}")
    if len(paths) > LOOKS:
        raise ConfigError(
            f"{len(paths)} runs were given; more than {LOOKS} curves cannot be told apart. Pass "
            f"{LOOKS} at most."
        )
    seen: dict[Path, Path] = {}
    for path in paths:
        other = seen.setdefault(path.resolve(), path)
        if other is not path:
            raise ConfigError(f"{path} is the same folder as {other}. Name each run once.")


def names_of(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of the folders above as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    return ["/".join(own[-_depth(own, parts) :]) for own in parts]


def _depth(own: tuple[str, ...], parts: Sequence[tuple[str, ...]]) -> int:
    for depth in range(1, len(own) + 1):
        if sum(other[-depth:] == own[-depth:] for other in parts) == 1:
            return depth
    return len(own)


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """All settings that any run's files hold."""
    tables = [_flat(run) for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    return [
        Setting(name, tuple(_text(table.get(name, _MISSING)) for table in tables)) for name in names
    ]


def _flat(run: Run) -> dict[str, Any]:
    """One run's settings by name; what a record of training says wins over what a recipe asked."""
    found: dict[str, Any] = {"optimizer": facts.optimizer_name(run)}
    recipe = run.known("recipe", of=run.recipe)
    sources = [recipe, run.log.state if run.log else None]
    sources += [run.known(name) for name in ("training", "launch", "hardware")]
    for source in sources:
        found.update(source if isinstance(source, dict) else {})
    for prefix in ("optimizer", "model", "versions", "git"):
        inside = run.known(prefix)
        for name, value in (inside if isinstance(inside, dict) else {}).items():
            found[f"{prefix}.{name}"] = value
    options = found.pop("optimizer.options", None)
    for name, value in (options if isinstance(options, dict) else {}).items():
        found[f"option {name}"] = value
    found["model"] = facts.model_name(run)
    found["base_model"] = run.known("base_model")
    peak = facts.peak_lr(run)
    if peak is not None:
        found["peak_lr"] = peak
    for name in ("learning_rate", "optim", "optimizer.name", "model.class", "model.name_or_path"):
        found.pop(name, None)  # said by other entries already
    return {name: value for name, value in found.items() if name.split(".")[-1] not in _NO_SETTINGS}


def _text(value: object) -> str | None:
    if value is _MISSING:
        return None
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return words(value) if isinstance(value, float) else str(value)


def results_of(run: Run) -> dict[str, str]:
    """What came out of a run, by name."""
    rows: dict[str, str] = {}
    ended = facts.is_finished(run)
    most = facts.most_steps(run)
    of = f" of {most:,}" if most is not None and most != run.steps else ""
    rows["steps"] = f"{run.steps:,}{of}{'' if ended is not False else ', not finished'}"
    seconds = facts.seconds_of(run)
    if seconds is not None:
        rows["wall time"] = facts.duration(seconds)
    series = speed(run)
    if series is not None:
        rows["steps per second, median"] = words(float(np.nanmedian(series.values)))
    elif seconds and run.steps:
        rows["steps per second"] = words(run.steps / seconds)
    lr = facts.peak_lr(run)
    if lr is not None:
        rows["peak learning rate"] = words(lr)
    for name in ("loss", *validation_losses(run), *metric_names(run), "drt_since_start"):
        found = run.series(name)
        if found is not None:
            _add(rows, name, found.values, found.last)
    return rows


def _add(
    rows: dict[str, str], name: str, values: np.ndarray, last: tuple[float, float] | None
) -> None:
    if last is None:
        rows[_words(name)] = "not finite"
        return
    rows[_words(name)] = words(last[1])
    if name != "loss" and name.endswith("loss"):
        rows[f"{_words(name)}, best"] = words(float(np.nanmin(values)))


def _words(name: str) -> str:
    known = {"loss": "training loss, last logged", "eval_loss": "validation loss",
             "drt_since_start": "distance from the initial network"}  # fmt: skip
    plain = name.removeprefix("eval_").replace("_", " ")
    return known.get(name, f"validation: {plain}")
