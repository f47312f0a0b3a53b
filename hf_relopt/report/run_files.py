"""The files of one run, read together: each may be missing, cut or hold NaN."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hf_relopt.errors import FormatError, one_line
from hf_relopt.report.json_file import read_object
from hf_relopt.report.numbers import Array, is_step, number_or_nan
from hf_relopt.report.telemetry_file import NAME as TELEMETRY
from hf_relopt.report.telemetry_file import Telemetry, read_telemetry
from hf_relopt.report.trainer_log import NAME as TRAINER_LOG
from hf_relopt.report.trainer_log import TrainerLog, checkpoints, read_trainer_log

RECORD, RECIPE, CONFIG = "relopt_run.json", "run.json", "config.json"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Series:
    """One metric of a run.

    Attributes:
        name: as in the log.
        steps: [n] ascending.
        values: [n], NaN where the log holds no finite number.
    """

    name: str
    steps: Array
    values: Array

    @property
    def last(self) -> tuple[float, float] | None:
        """Step and value of the last finite value; None if there is none."""
        known = np.flatnonzero(np.isfinite(self.values))
        return (float(self.steps[known[-1]]), float(self.values[known[-1]])) if len(known) else None

    @property
    def gaps(self) -> list[int]:
        """Steps at which the value is not finite."""
        return [int(step) for step in self.steps[np.isnan(self.values)]]


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
        path: its folder.
        record: of relopt_run.json; empty if there is none. The same for the next two.
        recipe: of run.json, which our recipes write.
        config: of config.json, the model's.
        log: the Trainer's log.
        telemetry: what each logged step did to each layer.
        faults: what could not be read, one sentence each.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    log: TrainerLog | None = None
    telemetry: Telemetry | None = None
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name or str(self.path)

    def known(self, *keys: str, of: Mapping[str, Any] | None = None) -> Any:
        """An entry of relopt_run.json, or of another object, by its path; None if not there."""
        found: Any = self.record if of is None else of
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def series(self, name: str) -> Series | None:
        """A metric by its name in the log.

        The Trainer's log counts. Telemetry adds what that lacks: the last steps of a run that was
        killed between two checkpoints.
        """
        points: dict[int, float] = {}
        if self.telemetry is not None and name in self.telemetry.metrics:
            values = self.telemetry.metrics[name]
            points = {
                int(step): float(v) for step, v in zip(self.telemetry.steps, values, strict=True)
            }
            if self.log is not None and name in self.log.names:
                points = {step: v for step, v in points.items() if step > self.log.last_step}
        for step, metrics in self._evaluations:
            if name in metrics:
                points[step] = number_or_nan(metrics[name])
        if self.log is not None:
            points = {**points, **self.log.points(name)}
        if not points:
            return None
        steps = sorted(points)
        return Series(name, np.array(steps, float), np.array([points[step] for step in steps]))

    @property
    def names(self) -> list[str]:
        """Names of all metrics, as in the log."""
        logged = self.log.names if self.log is not None else []
        measured = self.telemetry.metrics if self.telemetry is not None else {}
        evaluated = [name for _, metrics in self._evaluations for name in metrics]
        return list(dict.fromkeys([*logged, *measured, *evaluated]))

    @property
    def _evaluations(self) -> list[tuple[int, dict[str, Any]]]:
        """The first and the last evaluation, which the record holds also without a log."""
        found = self.known("evaluations")
        pairs = [
            (self.known("step", of=each), self.known("metrics", of=each))
            for each in (found if isinstance(found, list) else [])
            if isinstance(each, dict)
        ]
        return [
            (step, metrics)
            for step, metrics in pairs
            if is_step(step) and isinstance(metrics, dict)
        ]

    @property
    def steps(self) -> int:
        """The last step that is known of."""
        ends = [self.known("training", "steps"), self.recipe.get("steps")]
        ends += [self.log.last_step, self.log.state.get("global_step")] if self.log else []
        if self.telemetry is not None and len(self.telemetry.steps):
            ends.append(int(self.telemetry.steps[-1]))
        return max((end for end in ends if is_step(end)), default=0)


def read_run(path: Path) -> Run:
    """Read a run's folder.

    Raises:
        FormatError: no such folder, or one in which nothing of a run can be read.
    """
    _check(path)
    faults: list[str] = []
    record = _tried(lambda: read_object(path / RECORD), faults, path / RECORD)
    recipe = _tried(lambda: read_object(path / RECIPE), faults, path / RECIPE)
    log = _tried(lambda: read_trainer_log(path), faults)
    telemetry = _tried(lambda: read_telemetry(path / TELEMETRY), faults, path / TELEMETRY)
    if not (record or recipe or log or telemetry):
        raise FormatError(_nothing_there(path, faults))
    faults += [*(log.notes if log else ()), *(telemetry.notes if telemetry else ())]
    return Run(
        path=path,
        record=record or {},
        recipe=recipe or {},
        config=_config(path),
        log=log,
        telemetry=telemetry,
        faults=tuple(faults),
    )


def _tried(read: Callable[[], _T], faults: list[str], file: Path | None = None) -> _T | None:
    if file is not None and not file.exists():
        return None
    try:
        return read()
    except FormatError as error:
        faults.append(str(error))
    except OSError as error:
        faults.append(f"{file} cannot be read: {error.strerror or one_line(error)}.")
    return None


def _config(path: Path) -> dict[str, Any]:
    """The model's configuration, for what the records of the run do not say."""
    for place in (path, *checkpoints(path)):
        try:
            return read_object(place / CONFIG)
        except FormatError:
            continue
    return {}


def _check(path: Path) -> None:
    try:
        there, is_folder = path.exists(), path.is_dir()
        if is_folder:
            next(path.iterdir(), None)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise FormatError(f"{path} cannot be read: {one_line(error)}.") from error
    if there and not is_folder:
        raise FormatError(
            f"{path} is a file. Pass the folder of a run, its output_dir: {path.parent}"
        )
    if not there:
        near = _near(path)
        hint = f" Did you mean {near}?" if near else ""
        raise FormatError(f"There is no folder {path}. Pass the output_dir of a run.{hint}")


def _near(path: Path) -> Path | None:
    try:
        names = [each.name for each in path.parent.iterdir() if each.is_dir()]
    except OSError:
        return None
    found = difflib.get_close_matches(path.name, names, n=1)
    return path.parent / found[0] if found else None


def holds_a_run(path: Path) -> bool:
    """Whether a folder has a file that a report can be made of."""
    return any((path / name).is_file() for name in (TELEMETRY, TRAINER_LOG, RECORD, RECIPE))


def _nothing_there(path: Path, faults: Iterable[str]) -> str:
    if faults:
        return f"{path} holds nothing that can be read: {' '.join(faults)}"
    below = sorted(each for each in path.iterdir() if each.is_dir() and holds_a_run(each))
    if below:
        shown = ", ".join(map(str, below[:5])) + (", ..." if len(below) > 5 else "")
        return f"{path} is not the folder of one run, but holds some: {shown}. Pass one of these."
    return (
        f"{path} holds no log of a run: no {TRAINER_LOG} (also not in a checkpoint-*), "
        f"{TELEMETRY}, {RECORD} or {RECIPE}. Pass the output_dir of a Trainer. A Trainer writes "
        f"{TRAINER_LOG} with its first checkpoint and at trainer.save_state()."
    )
