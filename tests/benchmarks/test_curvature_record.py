"""The benchmark runs the recipe with its own file of runs, and repeats nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.scripts import records, start

ROOT = Path(__file__).resolve().parents[2]


def test_the_record_says_where_it_was_made_and_nothing_is_repeated(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    words = ["--out", tmp_path / "result", "--side", 4, "--depths", 2, "--kinds", "plain"]
    words += ["--seeds", 0, "--steps", 1, "--per_decade", 1, "--pictures", 16]
    script = load("curvature_record")
    start(monkeypatch, script, *words)
    (done,) = records(tmp_path / "result.jsonl")
    assert done["where"]["threads"] == 1 and len(done["points"]) == 5
    page = (tmp_path / "result.md").read_text()
    assert "result_1_steps.png" in page and "| 1 | 2, plain | 0.01 |" in page
    assert (tmp_path / "result_1_steps.png").is_file()
    start(monkeypatch, script, *words)
    assert records(tmp_path / "result.jsonl") == [done]
