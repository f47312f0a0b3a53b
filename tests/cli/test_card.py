"""`hf-relopt card`: what it prints, its exit codes, and that nothing is lost without a network."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from hf_relopt.cli.main import app
from tests.hf.conftest import told_run as told_run


def call(*words):
    return CliRunner().invoke(app, ["card", *map(str, words)])


@pytest.fixture
def run(told_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(told_run, tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_has_its_card_and_nothing_is_missing(run):
    done = call(
        "run", "--license", "mit", "--language", "en", "--dataset", "user/text", "--tag", "a"
    )
    assert (done.exit_code, done.output) == (0, "wrote run/README.md\n"), done.output
    data = ModelCard.load(run / "README.md").data
    assert (data.license, data.language, data.datasets) == ("mit", ["en"], ["user/text"])
    assert "a" in data.tags
    # What was said once is not forgotten.
    assert call("run").exit_code == 0
    assert ModelCard.load(run / "README.md").data.license == "mit"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["empty"], "holds no run"),
        (["run", "--push", "a b"], "USER/MODEL"),
        (["run", "--license", "My Own"], "license is 'My Own'"),
        (["run", "--language", "English"], "language is 'English'"),
        (["run", "--output", "nowhere/card.md"], "Name a file"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_the_card(words, said, run):
    (run.parent / "empty").mkdir()
    before = (run / "README.md").read_text()
    done = call(*words)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and said in done.stderr
    assert done.stderr.startswith("hf-relopt card: ")
    assert (run / "README.md").read_text() == before


def test_a_card_by_hand_is_kept_unless_replaced(run):
    (run / "README.md").write_text("# mine\n")
    done = call("run")
    assert done.exit_code == 2 and "--overwrite" in done.stderr and "--output" in done.stderr
    assert call("run", "--output", "other.md").exit_code == 0
    assert (run / "README.md").read_text() == "# mine\n" and (run.parent / "other.md").is_file()
    assert call("run", "--overwrite").exit_code == 0
    assert "# mine" not in (run / "README.md").read_text()


def test_what_is_missing_is_printed_and_the_code_says_partial(run):
    record = json.loads((run / "relopt_run.json").read_text())
    lost = {**record, "base_model": "user/nowhere", "base_is_local": False}
    (run / "relopt_run.json").write_text(json.dumps(lost))
    done = call("run")
    assert done.exit_code == 1 and done.stdout == "wrote run/README.md\n"
    assert done.stderr.startswith("missing: The distance from user/nowhere is not measured")
    assert "--base" in done.stderr and "## What is missing" in (run / "README.md").read_text()
    # The base is named, and nothing is missing any more.
    done = call("run", "--base", record["base_model"])
    assert done.exit_code == 0 and "deep relative trust" in (run / "README.md").read_text()
    assert call("run", "--no-distance").exit_code == 0


def test_the_folder_one_stands_in_is_a_run_too(run, monkeypatch):
    monkeypatch.chdir(run)
    assert call(".").exit_code == 0
    text = (run / "README.md").read_text()
    assert text.count("# run\n") == 1 and "deep relative trust" in text


def test_without_a_network_all_is_ready_and_the_message_says_how_to_push_later(run):
    done = call("run", "--push", "user/model", "--private")
    assert done.exit_code == 1
    assert "not uploaded: HF_HUB_OFFLINE is set. run is ready." in done.stderr
    assert done.stderr.rstrip().endswith("hf-relopt card run --push user/model --private")
    assert 'from_pretrained("user/model")' in (run / "README.md").read_text()


def test_a_folder_without_weights_is_not_pushed(run):
    (run / "model.safetensors").unlink()
    done = call("run", "--push", "user/model")
    assert done.exit_code == 1 and "trainer.save_model()" in done.stderr
