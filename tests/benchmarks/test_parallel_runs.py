"""Runs in other processes: what they give, and that they end with who began them."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
# One run that takes a minute, in a worker whose number is told.
PROGRAM = """
import os, time
from parallel_runs import run_all
if __name__ == "__main__":
    for _ in run_all(os.system, ["echo $PPID; sleep 60", "true"], 2, 1):
        pass
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_is_given_with_what_comes_of_it(load, jobs: int) -> None:
    found = load("parallel_runs").run_all(math.sqrt, [1.0, 4.0, 9.0], jobs, 1)
    assert sorted(found) == [(1.0, 1.0), (4.0, 2.0), (9.0, 3.0)]


def test_a_fault_in_a_run_is_raised_here(load) -> None:
    with pytest.raises(ValueError, match="math domain error"):
        list(load("parallel_runs").run_all(math.sqrt, [1.0, -1.0, 4.0], 2, 1))


def test_runs_end_with_the_program_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdout is not None
        worker = int(program.stdout.readline())
        program.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.1)
