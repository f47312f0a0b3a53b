"""`hf-relopt report`: pages of real runs, messages and exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hf_relopt.cli import main
from hf_relopt.cli.report import run_report
from tests.report import written


@pytest.fixture
def run_dir(tmp_path):
    """A run of ten steps with telemetry."""
    folder = tmp_path / "demo"
    written.write_telemetry(folder, written.telemetry_of(10, written.gpt2_layers(1)))
    return folder


def call(*words):
    return CliRunner().invoke(main.app, ["report", *map(str, words)], prog_name="hf-relopt")


def test_the_page_lies_in_the_runs_folder(run_dir):
    done = call(run_dir)
    assert (done.exit_code, done.stderr) == (0, "")
    page = run_dir / "report.html"
    assert "Relative update by layer" in page.read_text()
    first, *notes = done.stdout.splitlines()
    assert first.startswith(str(page)) and first.endswith(" KB)")
    assert any("There is no relopt_run.json" in note for note in notes)
    assert call(run_dir).exit_code == 0  # a page of ours is replaced


@pytest.mark.parametrize("command", ["report", "compare"])
def test_help_shows_examples_as_they_are_typed(command):
    done = CliRunner().invoke(main.app, [command, "--help"], prog_name="hf-relopt")
    assert done.exit_code == 0 and f"  hf-relopt {command} runs/demo" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100 and "\\b" not in done.stdout


def test_out_and_png(run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("demo", "--out", "page.html", "--png")
    assert done.exit_code == 0 and done.stdout.startswith("page.html (")
    names = {line.split()[0] for line in done.stdout.splitlines() if line[0] != " "}
    assert {"page_loss.png", "page_relative_update_by_layer.png"} < names
    assert names == {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert {path.name for path in run_dir.iterdir()} == {"telemetry.jsonl"}


def test_one_message_and_exit_code_2(run_dir, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "mine.html").write_text("mine")
    for words, message in (
        ((tmp_path / "dem",), f"Did you mean {run_dir}?"),
        ((empty,), "holds no log of a run"),
        ((tmp_path,), "is not the folder of one run"),
        ((run_dir / "telemetry.jsonl",), "is a file"),
        ((run_dir, "--out", tmp_path / "mine.html"), "no page of hf-relopt"),
        ((run_dir, "--out", tmp_path), "a folder. Pass a file"),
    ):
        done = call(*words)
        assert (done.exit_code, done.stdout) == (2, ""), words
        assert done.stderr.startswith("hf-relopt report: ") and message in done.stderr
        assert done.stderr.count("\n") == 1
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_a_killed_run_has_a_page_and_the_command_says_what_is_missing(run_dir, capsys):
    path = run_dir / "telemetry.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert run_report(run_dir) == 0
    assert "The last line of telemetry.jsonl is cut" in capsys.readouterr().out


def test_a_page_needs_neither_torch_nor_transformers(run_dir):
    code = (
        "import sys; from pathlib import Path; from hf_relopt.cli.report import run_report; "
        f"run_report(Path({str(run_dir)!r}), png=True); "
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("[]\n")
