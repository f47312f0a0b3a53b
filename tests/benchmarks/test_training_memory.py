"""training_memory.py trains in a process of its own, and keeps what it has measured."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

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


def test_the_record_in_the_repository_is_complete(
    load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("training_memory")
    name = "training_memory_cpu_202611"
    recorded = Path(script.RESULTS, f"{name}.md").read_text(encoding="utf-8")
    shutil.copy(Path(script.RESULTS, f"{name}.jsonl"), tmp_path)
    run = subprocess.run

    def no_child(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert "--child" not in command
        return run(command, **options)

    monkeypatch.setattr("subprocess.run", no_child)
    monkeypatch.setattr(script, "MONTH", "202611")
    start(monkeypatch, script, "--out", tmp_path)
    page = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert page.split("## Reading")[0] == recorded.split("## Reading")[0]
