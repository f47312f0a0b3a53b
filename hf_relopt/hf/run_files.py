"""What the folder of a run tells of it: the records, the log, and what is missing or damaged.

Any file may be missing, cut off by a kill, or hold NaN. What can be read is used, and a note says
what cannot.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_relopt.errors import FormatError, one_line
from hf_relopt.hf.run_record import RECORD

STATE, RECIPE, TELEMETRY = "trainer_state.json", "run.json", "telemetry.jsonl"
ADAPTER = "adapter_config.json"
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
)


@dataclass(frozen=True)
class RunFiles:
    """What was found in a run's folder.

    Attributes:
        folder: of the run.
        record: relopt_run.json; empty without one.
        recipe: run.json of a recipe; empty without one.
        log: the Trainer's log_history, or losses of telemetry.jsonl.
        state: trainer_state.json without its log; empty without one.
        notes: what is missing or damaged, each as a sentence with its remedy.
    """

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def finished(self) -> bool | None:
        """Whether training has ended; None if nothing says so."""
        said = [each.get("finished") for each in (self.recipe, self.record) if each]
        known = [value for value in said if isinstance(value, bool)]
        if self.recipe and "finished" not in self.recipe:
            return False
        if known:
            return all(known)
        steps, most = _step(self.state), self.state.get("max_steps")
        return True if isinstance(most, int) and 0 < most <= steps else None

    @property
    def weights(self) -> Path | None:
        """The folder that holds the weights: the run's, or its newest checkpoint; or none."""
        places = [self.folder, *reversed(checkpoints(self.folder))]
        return next((place for place in places if holds_weights(place)), None)


def read_run(folder: Path) -> RunFiles:
    """Read what there is.

    Raises:
        FormatError: no such folder, or nothing of a run in it.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no folder"
        raise FormatError(f"{folder} is {what}. Pass the folder of a run, its output_dir.")
    notes: list[str] = []
    record = _object(folder / RECORD, notes)
    if record is None and folder.name.startswith("checkpoint-"):
        record = _object(folder.parent / RECORD, notes)
    recipe = _object(folder / RECIPE, notes)
    log, state = _log(folder, notes)
    if not (record or recipe or log or state):
        raise FormatError(
            f"{folder} holds no run: there is no {RECORD}, no {STATE} (there or in a checkpoint) "
            f"and no {TELEMETRY}{_damage(notes)}. Pass the output_dir of a training."
        )
    if record is None:
        notes.append(
            f"There is no readable {RECORD}, so optimizer, plan, launch mode, machine and command "
            "are unknown. Train with RelOptTrainer, by `hf-relopt run --telemetry`, or add "
            "RunRecord() of hf_relopt.hf.run_record to the Trainer's callbacks."
        )
    # A state without losses is that of a run shorter than logging_steps: nothing is missing.
    if not log and not isinstance(state.get("global_step"), int):
        notes.append(
            f"There is no log of losses: neither {STATE} nor {TELEMETRY} can be read. Call "
            "trainer.save_state() after training."
        )
    _look_for_nan(log, notes)
    return RunFiles(folder, record or {}, recipe or {}, log, state, tuple(notes))


def _damage(notes: list[str]) -> str:
    return f" that can be read ({' '.join(notes).rstrip('.')})" if notes else ""


def _object(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """A JSON file's object; None if there is no such file, or with a note if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} is damaged and was not read: {one_line(error)}.")
        return None
    if not isinstance(found, dict):
        notes.append(f"{path.name} is damaged and was not read: it holds no names and values.")
        return None
    return found


def _log(folder: Path, notes: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The log that reaches furthest, and the state it stands in."""
    best: dict[str, Any] = {}
    for place in [folder, *reversed(checkpoints(folder))]:
        found = _object(place / STATE, notes)
        if found is not None and _step(found) > _step(best):
            best = found
        if place is not folder and found is not None:
            break  # older checkpoints know less
    history = best.get("log_history")
    log = [entry for entry in history if _is_entry(entry)] if isinstance(history, list) else []
    if not log:
        log = _losses(folder / TELEMETRY)
    return log, {name: value for name, value in best.items() if name != "log_history"}


def _step(state: Mapping[str, Any]) -> int:
    step = state.get("global_step", -1)
    return step if isinstance(step, int) else -1


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("step"), int)


def _losses(path: Path) -> list[dict[str, Any]]:
    """Steps of telemetry.jsonl as a Trainer logs them; those that were trained again count once."""
    log: list[dict[str, Any]] = []
    for line in _lines(path):
        step = line.get("step")
        if not isinstance(step, int):
            continue
        if line.get("kind") == "run":
            log = [entry for entry in log if entry["step"] <= step]
        elif line.get("kind") == "step" and "loss" in line:
            names = {"loss": "loss", "learning_rate": "lr"}
            log.append({"step": step, **{n: line.get(key) for n, key in names.items()}})
    return log


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of a run that was killed
        if isinstance(found, dict):
            yield found


def _look_for_nan(log: Iterable[Mapping[str, Any]], notes: list[str]) -> None:
    for name, words in (("loss", "training loss"), ("eval_loss", "validation loss")):
        steps = [entry["step"] for entry in log if name in entry and not is_finite(entry[name])]
        if steps:
            where = (
                f"step {steps[0]}"
                if len(steps) == 1
                else f"{len(steps)} entries from step {steps[0]}"
            )
            notes.append(
                f"The {words} is not finite at {where}: the run diverged there, or in part."
            )


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    there = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name[11:].isdigit()]
    return sorted(there, key=lambda path: int(path.name[11:]))


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds weights that can be loaded from it."""
    return any((folder / name).is_file() for name in MODEL_FILES)
