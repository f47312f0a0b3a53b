"""gpu_session.sh cannot run here, but what it would run is there, with the options it gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_session.sh"


def _parts() -> list[tuple[str, list[str]]]:
    """The files of all commands that start a benchmark, and the options that they give it."""
    text = SCRIPT.read_text().replace("\\\n", " ")
    found = re.findall(r"\$PYTHON (benchmarks/\w+\.py)([^\n]*)", text)
    return [(file, re.findall(r"--\w+", options)) for file, options in found]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs a GPU" in done.stdout + done.stderr


def test_each_part_names_a_script_and_options_that_it_has() -> None:
    parts = _parts()
    assert len(parts) == 6
    for file, options in parts:
        source = (SCRIPT.parents[1] / file).read_text()
        for option in options:
            assert f'"{option}"' in source, f"{file} has no {option}"


def test_its_limits_add_up_to_six_minutes() -> None:
    """Each part ends well before its limit; together they are meant for four minutes."""
    limits = re.findall(r"^ *part \w+ (\d+) ", SCRIPT.read_text(), re.MULTILINE)
    assert len(limits) == 7 and sum(map(int, limits)) <= 360
