"""lns_quality.py trains in codes, compresses afterwards, resumes, and writes a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.scripts import records, start
from tests.benchmarks.test_quality import TEXT


def test_it_trains_compresses_and_reports(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("lns_quality")
    monkeypatch.setattr(script, "STEPS", {"text": 2, "sst2": 2})
    # It is no part of the extra dev.
    monkeypatch.setattr(script.torchao_int8, "version", lambda: None)
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 60, encoding="utf-8")
    ours = ["madam:lr=.05,p_scale=5", "integer_madam:format=lns8,lr=.05,headroom=5"]
    monkeypatch.setattr(script, "GRID", {"text": [*ours, "adamw:lr=.01,weights=int8"]})
    arguments = ["--text_file", text, "--batches", 1, "--out", tmp_path / "result"]
    start(monkeypatch, script, *arguments)
    assert "torchao is not installed: adamw:lr=0.01,weights=int8" in capsys.readouterr().out
    done = records(tmp_path / "result.jsonl")
    assert [record["key"]["task"] for record in done] == ["text"] * 2 + ["after"] * 5
    losses = {record["key"]["optim"]: record["validation_loss"] for record in done[2:]}
    assert losses["float32"] == pytest.approx(done[0]["validation_loss"], abs=1e-6)
    assert abs(losses["lns16"] - losses["float32"]) < 1e-3
    assert 1.9 < done[1]["state_bytes_per_weight"] + 1 < 2.2
    start(monkeypatch, script, *arguments)
    assert records(tmp_path / "result.jsonl") == done
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "| `lns12` |" in page and "| `integer_madam:format=lns8" in page
    assert (tmp_path / "result.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("optim", "bits"),
    [
        ("integer_madam:format=lns10", 10),
        ("adamw:weights=bfloat16", 16),
        ("madam", 32),
        ("int8", 8),
        ("adamw:weights=int8", 8),
    ],
)
def test_bits_are_those_of_the_name(load, optim: str, bits: int) -> None:
    assert load("lns_quality").bits_of(optim) == bits
