"""Telemetry of a custom training loop: which steps are measured, and what is left behind."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hf_relopt import ConfigError, Fromage, Madam, create_optimizer
from hf_relopt.telemetry.loop import Telemetry


def loop(optimizer, model, telemetry, steps):
    found = {}
    for step in range(1, steps + 1):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if metrics := telemetry.log(loss):
            found[telemetry.step] = metrics
    return found


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def kinds(path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["kind"], line["step"]) for line in lines], lines


def test_one_step_out_of_so_many_is_measured_and_written(tmp_path):
    model = network()
    optimizer = create_optimizer(model, "fromage", 0.02)
    telemetry = Telemetry(optimizer, tmp_path / "t.jsonl", model=model, logging_steps=3)
    found = loop(optimizer, model, telemetry, 7)
    assert list(found) == [3, 6]
    assert found[3]["relative_update/matrix"] == pytest.approx(0.02, rel=0.01)
    seen, lines = kinds(tmp_path / "t.jsonl")
    assert seen == [("run", 0), ("step", 3), ("step", 6)]
    assert lines[0]["optimizer"] == "fromage" and lines[1]["loss"] > 0 and lines[1]["lr"] == 0.02
    names = [layer["name"] for layer in lines[0]["layers"]]
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_loop_without_it_ends_with_the_same_bits():
    ends = []
    for measured in (False, True):
        model = network()
        optimizer = Madam(model.parameters(), lr=0.05)
        telemetry = Telemetry(optimizer, None, logging_steps=1 if measured else 99)
        loop(optimizer, model, telemetry, 5)
        ends.append([param.detach() for param in model.parameters()])
    assert all(map(torch.equal, *ends))


def test_a_loop_that_resumes_counts_on(tmp_path):
    model = network()
    optimizer = Fromage(model.parameters())
    for start, steps in ((0, 4), (2, 2)):
        telemetry = Telemetry(
            optimizer, tmp_path / "t.jsonl", logging_steps=2, start_step=start, model=model
        )
        loop(optimizer, model, telemetry, steps)
        telemetry.close()
    seen, _ = kinds(tmp_path / "t.jsonl")
    assert seen == [("run", 0), ("step", 2), ("step", 4), ("run", 2), ("step", 4)]


def test_accelerate_s_accumulation_counts_optimizer_steps(tmp_path):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    optimizer = create_optimizer(model, "fromage", 0.02)
    model, optimizer = accelerator.prepare(model, optimizer)
    telemetry = Telemetry(optimizer, tmp_path / "t.jsonl", model=model, logging_steps=2)
    for _ in range(8):
        with accelerator.accumulate(model):
            loss = model(torch.randn(4, 6)).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            telemetry.log(loss)
    assert telemetry.step == 4
    assert kinds(tmp_path / "t.jsonl")[0] == [("run", 0), ("step", 2), ("step", 4)]


def test_after_close_nothing_is_measured():
    model = network()
    optimizer = Fromage(model.parameters())
    telemetry = Telemetry(optimizer, None, logging_steps=1)
    assert list(loop(optimizer, model, telemetry, 2)) == [1, 2]
    telemetry.close()
    assert loop(optimizer, model, telemetry, 2) == {}
    assert optimizer.take_measured() is None


def test_weights_that_are_cast_after_it_is_made_are_those_that_are_looked_at(tmp_path):
    model = network()
    optimizer = Fromage(model.parameters(), rounding="nearest")
    telemetry = Telemetry(optimizer, None, logging_steps=1, snapshots="memory", model=model)
    model.to(torch.bfloat16)
    model(torch.ones(2, 6, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    assert telemetry.log()["drt_since_start"] > 0


def test_another_optimizer_is_refused():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match="AdamW; it measures the steps of an optimizer of hf_rel"):
        Telemetry(torch.optim.AdamW([weight]), None)
    with pytest.raises(ConfigError, match="logging_steps is 0"):
        Telemetry(Fromage([weight]), None, logging_steps=0)
