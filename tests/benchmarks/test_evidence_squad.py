"""evidence_squad.py trains on questions of our own, scores as SQuAD does, and repeats itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BertTokenizer, EvalPrediction

COUNTS = (30, 12)


@pytest.fixture
def script(load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With few questions."""
    found = load("evidence_squad")
    monkeypatch.setattr(found, "MADE_COUNTS", COUNTS)
    return found


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer with the letters of our questions for tokens; stands for MiniLM."""
    folder = tmp_path_factory.mktemp("reader")
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "who", "in", "?", "."]
    vocabulary += [letter for letter in letters if letter not in "?."]
    vocabulary += [f"##{letter}" for letter in letters]
    BertTokenizer(vocab={word: n for n, word in enumerate(vocabulary)}).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), intermediate_size=32, **shape)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("optim", ["fromage:lr=0.001", "adamw:lr=5e-05,weight_decay=0.0"])
def test_two_steps_give_the_same_figures_again(
    load, script: ModuleType, monkeypatch: pytest.MonkeyPatch, reader: Path, optim: str
) -> None:
    monkeypatch.setattr(script, "packaged_model", lambda: str(reader))
    experiment = load("evidence_experiment")
    options = experiment.Options("quick", script.SQUAD.data)
    runs = [
        script.SQUAD.run(experiment.Cell(script.MINILM, optim, 2, seed), options)
        for seed in (0, 0, 1)
    ]
    first, again, other = ({**run, "seconds": None} for run in runs)
    assert first == again
    assert first["curve"] != other["curve"] and len(first["curve"]) == 2
    assert first["diverged_at"] is None and 0 < first["valid_loss"] < 10
    # The task head is new: it knows nothing yet.
    assert 0 <= first["exact_match"] <= first["f1"] < 50
    assert experiment.value_of(first, script.SQUAD) == first["f1"]


def test_every_optimizer_of_every_pass_steps(
    load, script: ModuleType, monkeypatch: pytest.MonkeyPatch, reader: Path
) -> None:
    monkeypatch.setattr(script, "packaged_model", lambda: str(reader))
    experiment, squad = load("evidence_experiment"), script.SQUAD
    for size in experiment.PASSES:
        assert set(squad.rivals[size]) <= set(squad.rivals["full"])
    for rival in squad.rivals["full"]:
        cell = experiment.Cell(script.MINILM, str(squad.with_rate(rival, 0.0)), 1, 0)
        found = squad.run(cell, experiment.Options("quick"))
        assert math.isfinite(found["valid_loss"]), rival


def test_true_positions_have_full_marks(script: ModuleType, reader: Path) -> None:
    data = script.read_questions("made", str(reader), {"max_length": 384, "doc_stride": 64})

    def knows_all(**batch: Any) -> SimpleNamespace:
        length = batch["input_ids"].shape[1]
        start, end = (
            9.0 * F.one_hot(batch[f"{name}_positions"], length) for name in ("start", "end")
        )
        loss = torch.tensor(batch["input_ids"].shape[0] / COUNTS[1])
        return SimpleNamespace(start_logits=start, end_logits=end, loss=loss)

    starts, ends, loss = script.measured(knows_all, data.valid, "cpu")
    count, longest = len(data.valid.rows), max(map(len, data.valid.rows["input_ids"]))
    assert count >= COUNTS[1] and starts.shape == ends.shape == (count, longest)
    assert loss > 0
    marks = data.score(EvalPrediction(predictions=(starts, ends), label_ids=None))
    assert marks == {"exact_match": 100.0, "f1": 100.0}


def test_an_epoch_has_every_window_at_most_once(script: ModuleType, reader: Path) -> None:
    data = script.read_questions("made", str(reader), {"max_length": 384, "doc_stride": 64})
    size, whole = script.BATCH, len(data.train.rows) // script.BATCH
    batches = list(data.train.batches(whole + 1, seed=0))
    assert all(len(batch["input_ids"]) == size for batch in batches)
    assert set(batches[0]) == {
        "input_ids", "token_type_ids", "attention_mask", "start_positions", "end_positions",
    }  # fmt: skip
    seen = [_row(batch, n) for batch in batches[:whole] for n in range(size)]
    assert len(set(seen)) == len(seen)


def _row(batch: Mapping[str, torch.Tensor], number: int) -> tuple[int, ...]:
    length = int(batch["attention_mask"][number].sum())
    return tuple(batch["input_ids"][number, :length].tolist())


def test_a_folder_with_squads_files_is_read(
    load, script: ModuleType, reader: Path, tmp_path: Path
) -> None:
    for name in script.FILES:
        load("small_questions").write_squad_file(tmp_path / name, 15, seed=7)
    data = script.read_questions(str(tmp_path), str(reader), {})
    assert len(data.train.rows) == len(data.valid.rows) == 15
    (tmp_path / script.FILES[1]).unlink()
    with pytest.raises(SystemExit, match=re.escape(script.FILES[1])):
        script.read_questions(str(tmp_path), str(reader), {})


def test_a_source_that_is_not_there_says_what_is_taken(
    script: ModuleType, reader: Path, tmp_path: Path
) -> None:
    # A path is no hub name: what is missing is the file.
    gone = tmp_path / "gone"
    taken = re.escape(str(gone / script.FILES[0])) + r".* takes made, a folder .* hub name"
    with pytest.raises(SystemExit, match=taken) as told:
        script.read_questions(str(gone), str(reader), {})
    assert "--dataset_name" not in str(told.value)


def test_a_model_that_is_not_there_is_no_fault_of_the_data(
    script: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"tokenizer .*no_model") as told:
        script.read_questions("made", str(tmp_path / "no_model"), {})
    assert "--data" not in str(told.value)


def test_rates_lie_around_those_of_fine_tuning(load, script: ModuleType) -> None:
    squad = script.SQUAD
    rates = {"fromage": 1e-3, "madam": 1e-3, "adamw:weight_decay=0.0": 5e-5, "sgd": 0.1}
    for rival, rate in rates.items():
        assert squad.recommended_rate(rival) == rate
        assert math.isclose(squad.with_rate(rival, -1.0).lr, rate / 10)
    first = [cell.optim for cell in squad.cells("here", [0])][: len(squad.rivals["here"])]
    assert {"adamw:lr=5e-05,weight_decay=0.0", "fromage:lr=0.001", "sgd:lr=0.1"} <= set(first)
    assert "muon:adamw_lr=6e-05,lr=0.0002,weight_decay=0.0" in first
    # An experiment from scratch has the common ones.
    assert load("evidence_depth").DEPTH.recommended_rate("adamw:weight_decay=0.0") == 1e-3
