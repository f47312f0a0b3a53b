"""Starting a script of benchmarks/ in this process, tiny data for it, and what it wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

WORDS = ["a", "very", "fine", "film", "with", "good", "actors", "but", "bad", "dull", "plot"]


def start(monkeypatch: pytest.MonkeyPatch, script: ModuleType, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(script.__file__), *map(str, arguments)])
    script.main()


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sentences(path: Path, count: int) -> Path:
    lines = ["sentence\tlabel"]
    for number in range(count):
        words = [WORDS[(number * 7 + place * 3) % len(WORDS)] for place in range(2 + number % 9)]
        lines.append(" ".join(words) + f"\t{number % 2}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
