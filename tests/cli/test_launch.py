"""`python -m hf_relopt.cli.launch`: what ends before Accelerate is loaded, and with which code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_relopt.cli.launch import first_look, main

ROOT = Path(__file__).resolve().parents[2]


def test_a_mistake_in_a_script_s_flags_ends_before_the_launcher_loads():
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "hf_relopt", "recipes", "run", "sft-chat-qwen", "--max_stepz", "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time")]
    assert said == ["sft_chat.py: error: unknown argument --max_stepz; did you mean --max_steps?"]
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded and not loaded & {"torch", "transformers", "accelerate"}
    assert time.monotonic() - begun < 30  # a second on a machine that has nothing else to do


@pytest.fixture
def signals_as_before():
    """`main` ends the process at once by a signal: not this one, once the test is over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("words", [[], ["missing.py"], ["-m", "module", "--x"], [__file__]])
def test_what_is_no_recipe_of_ours_is_not_looked_at(words):
    assert first_look(words) == 0


def test_help_of_a_recipe_is_left_to_the_recipe():
    assert first_look([str(ROOT / "recipes" / "sft_chat.py"), "--help", "--max_stepz", "3"]) == 0


def test_a_mistake_in_the_launcher_s_own_flags_is_one_line(signals_as_before, capsys):
    assert main(["--num_processes", "many", __file__]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hf-relopt: accelerate launch: ") and "num_processes" in line


def test_a_signal_before_the_script_ends_it_at_once_with_the_shell_s_code():
    code = "import os; from hf_relopt.cli import launch; launch._end_at_once_by_signals();"
    code += "os.kill(os.getpid(), 15)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 128 + 15
