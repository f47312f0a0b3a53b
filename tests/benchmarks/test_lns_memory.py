"""lns_memory.py trains each way in a process of its own, and counts what real tensors lie in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.scripts import records, start


@pytest.mark.parametrize(
    ("optim", "least", "most"),
    [
        ("integer_madam:format=lns8", 2, 2.1),
        ("integer_madam:format=lns12", 2.5, 2.6),
        ("madam", 8, 8.001),
        ("adamw", 12, 12.001),
    ],
)
def test_what_is_held_is_what_weights_and_state_lie_in(
    load, optim: str, least: float, most: float
) -> None:
    memory, spec = load("training_memory"), load("optimizer_spec")
    model = torch.nn.Sequential(torch.nn.Linear(512, 64, bias=False))
    optimizer = spec.build_optimizer(spec.optimizer_spec(optim), model)
    model(torch.ones(2, 512)).sum().backward()
    optimizer.step()
    assert least <= memory.held_bytes(model, optimizer) / (512 * 64) <= most


def test_the_memory_of_all_ways_is_in_the_table(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("lns_memory")
    mebibytes = {way: 2**20 * (number + 2) for number, way in enumerate(script.WAYS)}

    run = subprocess.run

    def ran(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "--child" not in command:
            return run(command, **options)
        assert command[1] == script.__file__
        peak = mebibytes[command[command.index("--child") + 1]]
        figures = {"parameters": 10**6, "peak_bytes": peak, "seconds": 1.0}
        figures.update(steps_peak_bytes=peak - 2**20, held_bytes=2 * 10**6)
        return subprocess.CompletedProcess(command, 0, json.dumps(figures))

    monkeypatch.setattr("subprocess.run", ran)
    start(monkeypatch, script, "--out", tmp_path)
    record, *others = records(next(tmp_path.glob("lns_memory_cpu_*.jsonl")))
    assert record["key"] == {"way": "adamw", "layers": 12, "width": 768} and len(others) == 4
    table = capsys.readouterr().out
    row = "| `integer_madam:format=lns8 inside` | float32 | 1 million | 2.000 | 5 | 5.24 | 6 |"
    assert row in table


@pytest.mark.slow
def test_training_in_codes_is_measured_in_a_process_of_its_own(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    way = "integer_madam:format=lns8 inside"
    arguments = ["--layers", 1, "--width", 64, "--way", way, "--out", tmp_path]
    for _ in range(2):
        start(monkeypatch, load("lns_memory"), *arguments)
    (record,) = records(next(tmp_path.glob("*.jsonl")))
    # Rows are short here: 64 bytes, and two numbers of four bytes for each.
    assert 2 < record["held_bytes"] / record["parameters"] < 2.2
    assert record["held_bytes"] < record["steps_peak_bytes"] <= record["peak_bytes"]
