"""training_memory.py trains in a process of its own, and keeps what it has measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.scripts import records, start


@pytest.mark.slow
def test_memory_is_measured_once(
    load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--layers", "1", "--width", "64", "--way", "fromage inside", "--out", tmp_path]
    for _ in range(2):
        start(monkeypatch, load("training_memory"), *map(str, arguments))
    (record,) = records(next(tmp_path.glob("*.jsonl")))
    weights = 4 * record["parameters"]
    assert weights < record["peak_bytes"] < 100 * weights
    assert "| `fromage inside` | float32 | 3 million |" in capfd.readouterr().out
