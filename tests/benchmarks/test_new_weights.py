"""The benchmarks of adapters and of added tokens: two steps each, repeated by nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.scripts import records, sentences, start


# peft 0.21 asks transformers 5.23 for a name that transformers renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_adapters_train_and_resume(
    load, monkeypatch: pytest.MonkeyPatch, tiny_bert: Path, tmp_path: Path
) -> None:
    arguments = ["--train_file", sentences(tmp_path / "train.tsv", 70)]
    arguments += ["--validation_file", sentences(tmp_path / "valid.tsv", 20)]
    arguments += ["--model", tiny_bert, "--steps", 2, "--out", tmp_path / "result"]
    arguments += ["--optim", "fromage", "--optim", "adamw:lr=1e-3"]
    arguments += ["--adapter", "ia3", "--adapter", "prompt_tuning"]
    start(monkeypatch, load("adapters_sst2"), *arguments)
    done = records(tmp_path / "result.jsonl")
    assert [record["lr"] for record in done] == [0.03, 1e-3, 0.1, 1e-3]
    start(monkeypatch, load("adapters_sst2"), *arguments)
    assert records(tmp_path / "result.jsonl") == done
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "| prompt_tuning | `fromage` |" in page and str(tmp_path) not in page


def test_added_tokens_are_measured_before_and_after(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("new_tokens")
    monkeypatch.setattr(script, "FIRST_STEPS", 2)
    text = tmp_path / "text.txt"
    text.write_text("the other one in another place ran out\n" * 80, encoding="utf-8")
    arguments = ["--train_file", text, "--steps", 2, "--out", tmp_path / "result"]
    arguments += ["--optim", "fromage_spectral:lr=.02", "--optim", "adamw:lr=1e-3"]
    start(monkeypatch, script, *arguments)
    done = records(tmp_path / "result.jsonl")
    assert [record["key"]["tied"] for record in done] == [True, True, False, False]
    assert all(record["after"] != record["before"] for record in done)
    start(monkeypatch, script, *arguments)
    assert records(tmp_path / "result.jsonl") == done
