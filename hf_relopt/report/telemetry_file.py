"""telemetry.jsonl: what each logged step did to each layer, read as far as the file can be read.

The file is appended to while a run trains, so its last line may be cut. A resumed run appends a
"run" line and trains the steps after its "step" again: of those the file holds two, and the later
ones count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_relopt.report.numbers import Array, finite, is_step, number_or_nan

NAME = "telemetry.jsonl"
FORMAT = 1
# Per layer; the names in a line of the file.
TABLES = ("relative_update", "norm", "at_bound", "changed")


@dataclass(frozen=True)
class Layer:
    """One weight of the network, as the file names it."""

    name: str
    role: str = ""
    shape: tuple[int, ...] = ()
    follows: str = ""

    @property
    def parameters(self) -> int:
        """Entries of the weight."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Telemetry:
    """All logged steps.

    Attributes:
        optimizer: the optimizer's name; empty if the file does not say.
        layers: in network order.
        steps: [n] ascending.
        times: [n] unix seconds, NaN where unknown.
        since: [n, 2] step and time of the logged step, or of the start, just before in the same
            start of the run.
        tables: name of TABLES -> [n, layers], NaN where a layer was not stepped.
        initial_norms: [layers] norms before the first step, NaN where the file does not say.
        metrics: name -> [n], with "loss" and "learning_rate".
        warnings: (step, text).
        starts: how often the run was started.
        notes: what of the file could not be read.
    """

    optimizer: str
    layers: tuple[Layer, ...]
    steps: Array
    times: Array
    since: Array
    tables: Mapping[str, Array]
    initial_norms: Array
    metrics: Mapping[str, Array]
    warnings: tuple[tuple[int, str], ...]
    starts: int
    notes: tuple[str, ...]

    @property
    def steps_per_second(self) -> Array:
        """[n] Speed since the logged step before, with evaluations and saving in between."""
        seconds = self.times - self.since[:, 1]
        steps = self.steps - self.since[:, 0]
        speed = np.full(len(steps), np.nan)
        np.divide(steps, seconds, out=speed, where=(seconds > 0) & (steps > 0))
        return speed


class _Damaged(ValueError):
    """A line that cannot be used."""


@dataclass
class _Reader:
    optimizer: str = ""
    layers: tuple[Layer, ...] = ()
    starts: int = 0
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    warnings: list[tuple[int, str]] = field(default_factory=list)
    before: tuple[float, float] = (math.nan, math.nan)
    newer: object = None
    norms: Array = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    def take(self, line: object) -> None:
        """Use one line; a kind that is not known is left alone."""
        if not isinstance(line, dict):
            raise _Damaged("no object")
        kinds = {"run": self._run, "step": self._step, "warning": self._warning}
        take = kinds.get(str(line.get("kind")))
        if take is not None:
            take(line)

    def _run(self, line: dict[str, Any]) -> None:
        step = _step_of(line)
        for later in [each for each in self.rows if each > step]:
            del self.rows[later]
        self.warnings = [warning for warning in self.warnings if warning[0] <= step]
        self.starts += 1
        self.optimizer = str(line.get("optimizer") or self.optimizer)
        self.before = (step, number_or_nan(line.get("time")))
        if line.get("format", FORMAT) != FORMAT:
            self.newer = line.get("format")
        given = line.get("layers")
        if isinstance(given, list):
            self._lay_out(tuple(_layer(each) for each in given))
            if step == 0:
                self.norms = _column(line.get("norm"), len(given))

    def _lay_out(self, layers: tuple[Layer, ...]) -> None:
        """Bring what was read before into the order of these layers."""
        if [each.name for each in layers] != [each.name for each in self.layers]:
            old = {layer.name: place for place, layer in enumerate(self.layers)}
            places = [old.get(layer.name, -1) for layer in layers]
            nan = np.float32(np.nan)
            self.norms = np.append(self.norms, nan)[places]
            for row in self.rows.values():
                for name in TABLES:
                    row[name] = np.append(row[name], nan)[places]
        self.layers = layers

    def _step(self, line: dict[str, Any]) -> None:
        step, time = _step_of(line), number_or_nan(line.get("time"))
        row: dict[str, Any] = {"time": time, "since": self.before}
        for name in TABLES:
            row[name] = _column(line.get(name), len(self.layers))
        given = line.get("metrics")
        metrics = dict(given) if isinstance(given, dict) else {}
        for name, key in (("loss", "loss"), ("learning_rate", "lr")):
            if key in line:
                metrics[name] = line[key]
        row["metrics"] = metrics
        self.rows[step] = row
        self.before = (step, time)

    def _warning(self, line: dict[str, Any]) -> None:
        self.warnings.append((_step_of(line), str(line.get("text", ""))))


def read_telemetry(path: Path) -> Telemetry:
    """Read a file, line by line; a line that cannot be read costs that line alone.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened.
    """
    reader = _Reader()
    damaged: list[int] = []
    cut, count = False, 0
    with open(path, "rb") as file:
        for count, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                reader.take(json.loads(line))
            except (ValueError, RecursionError, OverflowError):
                # Whoever writes ends each line with "\n": without it, the line was not finished.
                cut = not line.endswith(b"\n")
                damaged += [] if cut else [count]
    return _assembled(reader, _notes(reader, damaged, cut, count))


def _notes(reader: _Reader, damaged: list[int], cut: bool, lines: int) -> tuple[str, ...]:
    notes = []
    if lines == 0:
        notes.append(f"{NAME} is empty.")
    if cut:
        last = f"; what is shown ends at step {max(reader.rows):,}" if reader.rows else ""
        notes.append(f"The last line of {NAME} is cut, as a killed run leaves it{last}.")
    if damaged:
        which = ", ".join(f"{number:,}" for number in damaged[:5])
        rest = " and others" if len(damaged) > 5 else ""
        notes.append(
            f"{len(damaged):,} of {lines:,} lines of {NAME} cannot be read (line {which}{rest})."
        )
    if reader.newer is not None:
        notes.append(
            f"{NAME} has format {reader.newer!r}; this version of hf_relopt knows {FORMAT}. "
            "Some of it may be missing here: update hf_relopt."
        )
    return tuple(notes)


def _assembled(reader: _Reader, notes: tuple[str, ...]) -> Telemetry:
    steps = sorted(reader.rows)
    rows = [reader.rows.pop(step) for step in steps]
    shape = (len(rows), len(reader.layers))
    tables = {}
    for name in TABLES:
        table = np.full(shape, np.nan, dtype=np.float32)
        for place, row in enumerate(rows):
            table[place] = row.pop(name)
        tables[name] = table
    names = {name: None for row in rows for name in row["metrics"]}
    metrics = {
        name: np.array([number_or_nan(row["metrics"].get(name)) for row in rows], dtype=float)
        for name in names
    }
    return Telemetry(
        optimizer=reader.optimizer,
        layers=reader.layers,
        steps=np.array(steps, dtype=float),
        times=np.array([row["time"] for row in rows], dtype=float),
        since=np.array([row["since"] for row in rows], dtype=float).reshape(-1, 2),
        tables=tables,
        initial_norms=reader.norms,
        metrics=metrics,
        warnings=tuple(reader.warnings),
        starts=reader.starts,
        notes=notes,
    )


def _step_of(line: dict[str, Any]) -> int:
    step = line.get("step")
    if not is_step(step):
        raise _Damaged("no step")
    return step


def _layer(given: object) -> Layer:
    if not isinstance(given, dict):
        raise _Damaged("no layer")
    shape = given.get("shape")
    sizes = (
        tuple(size for size in shape if isinstance(size, int)) if isinstance(shape, list) else ()
    )
    name, role, follows = (str(given.get(key) or "") for key in ("name", "role", "follows"))
    return Layer(name, role, sizes, follows)


def _column(given: object, layers: int) -> Array:
    """[layers] float32; all NaN if the line does not have it."""
    if given is None:
        return np.full(layers, np.nan, dtype=np.float32)
    if not isinstance(given, list) or len(given) != layers:
        raise _Damaged("not one per layer")
    try:
        with np.errstate(over="ignore"):
            return finite(np.array(given, dtype=np.float32))
    except TypeError as error:
        raise _Damaged("not a number") from error
