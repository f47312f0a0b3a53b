"""`hf-relopt compare`: one page of several runs, messages and exit codes."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from hf_relopt.cli import main
from tests.report import written


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        log = written.trainer_state([{"step": step, "loss": 1 / step} for step in (1, 2, 3)])
        written.write_json(tmp_path / name / "trainer_state.json", log)
    return tmp_path


def call(*words):
    return CliRunner().invoke(main.app, ["compare", *map(str, words)], prog_name="hf-relopt")


def test_the_page_lies_in_the_working_directory(runs):
    done = call("one", "two")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("compare.html (")
    assert "one and two" in (runs / "compare.html").read_text()
    assert call("one", "two", "--out", runs / "other.html").exit_code == 0
    assert (runs / "other.html").is_file()


def test_one_message_and_exit_code_2(runs):
    for words, message in (
        (("one",), "hf-relopt report one"),
        (("one", "one"), "is the same folder as"),
        (("one", runs / "one"), "is the same folder as"),
        (("one", "tow"), "Did you mean two?"),
        (("one", "two", "--out", "one"), "a folder. Pass a file"),
        (("one", runs), "holds some"),
    ):
        done = call(*words)
        assert (done.exit_code, done.stdout) == (2, ""), words
        assert done.stderr.startswith("hf-relopt compare: ") and message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (runs / "compare.html").exists()


def test_a_fault_of_one_run_is_said_with_its_name(runs):
    path = runs / "two" / "trainer_state.json"
    path.write_text(path.read_text()[:-60])
    done = call("one", "two")
    assert done.exit_code == 0 and "  two: two/trainer_state.json is cut" in done.stdout
