"""The commands by their names: help, usage errors, versions, and what they import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hf_relopt import UnsupportedSetup
from hf_relopt.cli import main
from hf_relopt.plans.entries import OPTIMIZERS
from tests.cli.doctor_calls import ROOT


def call(*words: str):
    return CliRunner().invoke(main.app, words, prog_name="hf-relopt")


def started(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hf_relopt", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_is_a_module_as_well():
    done = started("--version")
    assert (done.returncode, done.stdout) == (0, "hf_relopt 0.1.0\n")


def test_usage_errors_of_the_command():
    for arguments in (["--processes", "0"], ["--no_such_option"], ["--accelerate", "nothing"]):
        done = call("doctor", *arguments)
        assert done.exit_code == 2 and done.stderr and "Traceback" not in done.stderr, arguments


def test_help_shows_examples_as_they_are_typed():
    for words, shown in (
        (["--help"], ["run", "recipes", "Relative-trust optimizers"]),
        (["recipes", "run", "--help"], ["hf-relopt recipes run pretrain", "--accelerate"]),
        (["run", "--help"], ["hf-relopt run python", "torchrun", "accelerate launch", "trl sft"]),
        (
            ["doctor", "--help"],
            ["  hf-relopt doctor --accelerate fsdp2 --processes 8\n", "exit code", *OPTIMIZERS],
        ),
    ):
        done = call(*words)
        assert (done.exit_code, done.stderr) == (0, "")
        for each in shown:
            assert each in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100
        assert "\\b" not in done.stdout and "python train.py hf-relopt" not in done.stdout


def test_our_own_command_line_never_shows_a_traceback(monkeypatch, capsys):
    """Commands say what is wrong themselves; this is for what none of them expects."""

    def refuse(**_):
        raise UnsupportedSetup("ZeRO is refused.")

    monkeypatch.setattr(main, "app", refuse)
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "hf-relopt: ZeRO is refused.\n"


def test_the_other_commands_import_no_torch():
    done = started("run", "python", "-c", "pass", PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "typer" in loaded
    assert not loaded & {"torch", "transformers", "accelerate"}
