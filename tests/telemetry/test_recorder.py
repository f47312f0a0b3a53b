"""What becomes of a measured step: a line of every layer, metrics, advice; and of a resumed run."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage, create_optimizer
from hf_relopt.telemetry.recorder import Recorder, unwrapped
from tests.hf.tiny import gpt2


def job():
    model = gpt2()
    return model, create_optimizer(model, "fromage_spectral", 0.02)


def train(model, optimizer, recorder, steps, every=2):
    found = []
    for step in steps:
        optimizer.zero_grad()
        ids = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        if step % every == 0:
            optimizer.measure_next_step()
        optimizer.step()
        if measured := optimizer.take_measured():
            found.append(recorder.record(measured, step=step, lr=0.02, loss=1.5))
    return found


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_has_a_number_of_each_layer_in_network_order(tmp_path):
    model, optimizer = job()
    recorder = Recorder(tmp_path / "t.jsonl")
    recorder.begin(optimizer, model, name="fromage_spectral")
    assert not (tmp_path / "t.jsonl").exists()  # not before there is something to say
    before = [param.detach().norm().item() for param in model.parameters()]
    found = train(model, optimizer, recorder, [1, 2])
    first, line = lines(tmp_path / "t.jsonl")
    assert (first["kind"], first["format"], first["step"]) == ("run", 1, 0)
    assert first["optimizer"] == "fromage_spectral"
    names = [layer["name"] for layer in first["layers"]]
    assert names == [name for name, _ in model.named_parameters()]
    assert first["norm"] == pytest.approx(before, rel=1e-5)
    assert (line["kind"], line["step"], line["lr"], line["loss"]) == ("step", 2, 0.02, 1.5)
    norms = [param.detach().norm().item() for param in model.parameters()]
    assert line["norm"] == pytest.approx(norms, rel=1e-5)
    for name in ("relative_update", "at_bound", "changed"):
        assert len(line[name]) == len(names)
    assert line["metrics"] == pytest.approx(found[0], rel=1e-5, abs=1e-6)
    matrix = names.index("transformer.h.0.mlp.c_fc.weight")
    assert line["relative_update"][matrix] == pytest.approx(0.02, rel=1e-3)
    assert line["changed"][matrix] == 1


def test_what_is_not_stepped_is_null(tmp_path):
    params = [nn.Parameter(torch.ones(2, 2)) for _ in range(3)]
    optimizer = Fromage(params)
    recorder = Recorder(tmp_path / "t.jsonl")
    recorder.begin(optimizer, None, name="fromage")
    params[0].grad, params[1].grad = torch.ones(2, 2), torch.full((2, 2), float("nan"))
    optimizer.measure_next_step()
    optimizer.step()
    recorder.record(optimizer.take_measured(), step=1, lr=0.01, loss=float("nan"))
    _, line, warning = lines(tmp_path / "t.jsonl")
    assert line["loss"] is None
    assert [each is None for each in line["relative_update"]] == [False, True, True]
    assert [each is None for each in line["norm"]] == [False, False, True]
    assert warning["kind"] == "warning" and "parameter 1" in warning["text"]


def test_other_ranks_write_and_say_nothing_and_have_the_metrics(tmp_path):
    model, optimizer = job()
    recorder = Recorder(tmp_path / "t.jsonl", snapshots="memory")
    recorder.begin(optimizer, model, name="x", writes=False)
    (found,) = train(model, optimizer, recorder, [1, 2])
    assert found["relative_update"] > 0 and "drt_since_start" not in found
    assert not (tmp_path / "t.jsonl").exists()


def test_a_resumed_run_knows_with_which_norms_the_first_began(tmp_path):
    model, optimizer = job()
    recorder = Recorder(tmp_path / "t.jsonl")
    recorder.begin(optimizer, model, name="x")
    train(model, optimizer, recorder, [1, 2])
    start = lines(tmp_path / "t.jsonl")[0]["norm"]
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(3.0)
    again = Recorder(tmp_path / "t.jsonl")
    again.begin(optimizer, model, name="x", step=2)
    assert again._advice.start_norms == start
    train(model, optimizer, again, [3, 4])
    kinds = [(line["kind"], line["step"]) for line in lines(tmp_path / "t.jsonl")]
    assert kinds == [("run", 0), ("step", 2), ("run", 2), ("step", 4), ("warning", 4)]
    assert "mlp.c_fc.weight doubled its norm" in lines(tmp_path / "t.jsonl")[-1]["text"]
    other = Recorder(tmp_path / "t.jsonl")
    stranger = nn.Linear(3, 3)
    other.begin(Fromage(stranger.parameters()), stranger, name="x", step=2)
    assert other._advice.start_norms != start  # of another network


def test_copies_that_a_resumed_run_takes_are_not_those_of_the_start(tmp_path):
    model, optimizer = job()
    recorder = Recorder(tmp_path / "t.jsonl", snapshots="memory")
    recorder.begin(optimizer, model, name="x", step=2)
    _, warning = lines(tmp_path / "t.jsonl")
    assert "measured from step 2" in warning["text"]
    (found,) = train(model, optimizer, recorder, [3, 4])
    assert found["drt_since_start"] > 0 and 0 < found["changed_since_snapshot"] <= 1


def test_a_file_to_compare_with_gives_the_distance_from_it(tmp_path):
    model, optimizer = job()
    model.save_pretrained(tmp_path / "start")
    recorder = Recorder(None, initial=tmp_path / "start")
    recorder.begin(optimizer, model, name="x", step=2)
    (found,) = train(model, optimizer, recorder, [3, 4])
    assert found["drt_since_start"] > 0 and "changed_since_snapshot" not in found


def test_skipped_gradients_of_an_earlier_run_are_not_news(tmp_path):
    model, optimizer = job()
    weight = model.transformer.wpe.weight
    weight.grad = torch.full_like(weight, float("nan"))
    optimizer.step()
    recorder = Recorder(tmp_path / "t.jsonl")
    recorder.begin(optimizer, model, name="x", step=1)
    (found,) = train(model, optimizer, recorder, [2])
    assert found["skipped_tensors"] == 1
    assert [line["kind"] for line in lines(tmp_path / "t.jsonl")] == ["run", "step"]


def test_options_are_checked_when_it_is_made():
    with pytest.raises(ConfigError, match="snapshots"):
        Recorder(None, snapshots="disk")


def test_unwrapped_finds_ours_and_only_ours():
    weight = torch.nn.Parameter(torch.ones(2))
    ours = Fromage([weight])

    class Wrapper:
        optimizer = ours

    assert unwrapped(ours) is ours
    assert unwrapped(Wrapper()) is ours
    assert unwrapped(torch.optim.SGD([weight])) is None
    assert unwrapped(None) is None
