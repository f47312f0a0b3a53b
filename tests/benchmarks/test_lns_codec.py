"""lns_codec.py times every way in turn, and says what was not there or not beside the others."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from hf_relopt.lns.format import FORMATS
from tests.benchmarks.scripts import records, start

SMALL = ["--matrix", 8, "--batch", 2, "--size", "tiny", "--tokens", 32, "--rounds", 1]
SMALL += ["--device", "cpu", "--optim", "integer_madam:format=lns8,lr=.01,backend=foreach"]
SMALL += ["--optim", "integer_madam:backend=loop,lr=.02,format=lns8"]
BACKENDS = (("foreach", 0.01), ("loop", 0.02))
CODEC = {f"{name}, {what}" for name in FORMATS for what in ("encode", "decode")}


def measured(monkeypatch: pytest.MonkeyPatch, script: ModuleType, out: Path) -> tuple[dict, str]:
    """What is recorded, by part and way, and the page."""
    start(monkeypatch, script, *SMALL, "--out", out)
    found = {(r["key"]["part"], r["key"]["way"]): r for r in records(out.with_suffix(".jsonl"))}
    return found, out.with_suffix(".md").read_text(encoding="utf-8")


def test_codes_are_timed_beside_numbers(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)  # as if it were not installed
    done, page = measured(monkeypatch, load("lns_codec"), tmp_path / "result")
    by_part: dict[str, set[str]] = {}
    for part, way in done:
        by_part.setdefault(part, set()).add(way)
    assert by_part["codec"] == {"copy of float32", "bfloat16 to float32", *CODEC}
    assert by_part["linear"] == {"float32", "bfloat16", *FORMATS}
    madam = "madam:lr=0.01"
    codes = {f"integer_madam:backend={b},format=lns8,lr={lr}" for b, lr in BACKENDS}
    assert by_part["training"] == {madam, *codes}
    for (part, _), record in done.items():
        assert 0 < record["fastest_ms"] <= record["ms"]
        if part == "training":
            passes, rest = record["passes_ms"], record["optimizer_ms"]
            assert record["ms"] == pytest.approx(passes + rest) and record["in_turn"]
    copied = done["codec", "copy of float32"]
    assert copied["ns_per_weight"] == pytest.approx(1e6 * copied["ms"] / 64)
    assert done["training", madam]["ratio"] == 1
    assert "not a measurement" in page and "torchao was not there" in page
    assert f"| `{madam}` |" in page and "measured alone" not in page


def test_torchao_has_a_row_where_it_is(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("lns_codec")
    monkeypatch.setattr(script.torchao_int8, "version", lambda: "0.0")
    monkeypatch.setattr(script.torchao_int8, "compress", lambda layer: None)
    start(monkeypatch, script, *SMALL, "--part", "linear", "--out", tmp_path / "result")
    done = {r["key"]["way"]: r for r in records(tmp_path / "result.jsonl")}
    assert done["int8, torchao"]["torchao"] == "0.0"
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert (
        "| int8, torchao |" in page and " torchao 0.0." in page and "training step of" not in page
    )


def test_models_that_share_no_room_are_measured_alone(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("lns_codec")
    made: list[int] = []
    model = script._gpt2
    monkeypatch.setattr(script, "_gpt2", lambda *args: made.append(1) or model(*args))
    monkeypatch.setattr(script, "ROOM", 0)
    start(monkeypatch, script, *SMALL, "--part", "training", "--out", tmp_path / "result")
    assert len(made) == 2  # Madam's, and one for two backends
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "each was measured alone" in page and "`madam:lr=0.01`" in page


def test_tokens_fill_whole_sequences(
    load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        start(monkeypatch, load("lns_codec"), *SMALL, "--tokens", 33, "--out", tmp_path / "result")
    assert "sequences of 16" in capsys.readouterr().err
