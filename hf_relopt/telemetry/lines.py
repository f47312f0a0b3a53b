"""A run's telemetry.jsonl: one JSON object per line, written at once, so that a killed run has it.

A run that resumes goes on in the same file with a new line of kind "run". Its "step" says where it
begins: what the lines before say of later steps was trained again.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

FILE = "telemetry.jsonl"
FORMAT = 1


class Lines:
    """Appends to the file. The folder and the file are made with the first line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line, and hand it to the operating system."""
        text = json.dumps(plain(line), allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # In one write. What a killed run left of its last line stays a line of its own.
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(("\n" if _ends_mid_line(self.path) else "") + text)


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run, without those of steps that were trained again; [] without a file."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for words in text.splitlines():
        try:
            line = json.loads(words)
        except ValueError:
            continue  # cut off when a run was killed
        if not isinstance(line, dict):
            continue
        if line.get("kind") == "run":
            begin = line.get("step", 0)
            found = [old for old in found if old.get("step", 0) <= begin and begin > 0]
        found.append(line)
    return found


def plain(value: Any) -> Any:
    """``value`` as JSON has it: six digits of each float, null for NaN and infinity."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.6g}") if abs(value) < 1e6 else round(value, 3)  # seconds of a date
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _ends_mid_line(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
