"""trainer_state.json: the Trainer's own log, also where a killed run left only a part of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_relopt.errors import FormatError
from hf_relopt.report.json_file import read_object
from hf_relopt.report.numbers import is_number, is_step, number_or_nan

NAME = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_HISTORY = re.compile(r'"log_history"\s*:\s*\[')


@dataclass(frozen=True)
class TrainerLog:
    """A Trainer's log.

    Attributes:
        entries: of log_history, each an object with a "step".
        state: the other entries of the file.
        notes: what could not be read, and what was read in its place.
    """

    entries: tuple[dict[str, Any], ...]
    state: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def last_step(self) -> int:
        """The last step that is logged."""
        return max((entry["step"] for entry in self.entries), default=0)

    def points(self, name: str) -> dict[int, float]:
        """Step -> value, NaN where the value is not finite."""
        return {
            entry["step"]: number_or_nan(entry[name])
            for entry in self.entries
            if name in entry and (is_number(entry[name]) or entry[name] is None)
        }

    @property
    def names(self) -> list[str]:
        """What is logged, in the order in which it came."""
        names = {name: None for entry in self.entries for name in entry if name != "step"}
        return list(names)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the newest first."""
    found = [
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def read_trainer_log(folder: Path) -> TrainerLog | None:
    """The log at the top of a run's folder, else the one of the newest checkpoint that has one.

    A checkpoint's log is taken as well where it was written later and has more steps: there the run
    was resumed and is not finished.

    Returns:
        None if there is no such file.

    Raises:
        FormatError: there are such files, and nothing of any of them can be read.
    """
    places = [folder / NAME, *(path / NAME for path in checkpoints(folder))]
    faults: list[str] = []
    partial: list[TrainerLog] = []
    best: tuple[Path, TrainerLog] | None = None
    for place in places:
        if not place.is_file():
            continue
        try:
            log = _read(place)
        except FormatError as error:
            faults.append(str(error))
            partial += _salvaged(place)
            continue
        if best is None or (log.last_step > best[1].last_step and _is_newer(place, best[0])):
            best = (place, log)
        if place.parent != folder:
            break  # older checkpoints know less
    found = [*([best[1]] if best else []), *partial]
    if not found and faults:
        raise FormatError(" ".join(faults))
    if not found:
        return None
    log = max(found, key=lambda each: each.last_step)
    if not faults:
        return log
    used = "; the log is that of a checkpoint" if log not in partial else ""
    ends = f"what is shown ends at step {log.last_step:,}{used}."
    return TrainerLog(log.entries, log.state, (f"{' '.join(faults)} So {ends}",))


def _is_newer(place: Path, other: Path) -> bool:
    return place.stat().st_mtime > other.stat().st_mtime


def _read(place: Path) -> TrainerLog:
    content = read_object(place)
    history = content.pop("log_history", None)
    if not isinstance(history, list):
        raise FormatError(f"{place} has no list log_history, so no Trainer wrote it.")
    return TrainerLog(_usable(history), content)


def _usable(history: list[Any]) -> tuple[dict[str, Any], ...]:
    return tuple(
        entry for entry in history if isinstance(entry, dict) and is_step(entry.get("step"))
    )


def _salvaged(place: Path) -> list[TrainerLog]:
    """The complete entries of a file that is cut; none if it has no whole one."""
    text = place.read_text("utf-8", errors="replace")
    begin = _HISTORY.search(text)
    if begin is None:
        return []
    entries, at = [], begin.end()
    decoder = json.JSONDecoder()
    while True:
        at = re.compile(r"[\s,]*").match(text, at).end()  # type: ignore[union-attr]
        try:
            entry, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        entries.append(entry)
    usable = _usable(entries)
    return [TrainerLog(usable)] if usable else []
