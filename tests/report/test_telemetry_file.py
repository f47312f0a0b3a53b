"""telemetry.jsonl: whole, resumed, cut, damaged, with NaN."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

from hf_relopt import RelOptTrainer
from hf_relopt.report.telemetry_file import TABLES, read_telemetry
from tests.hf import tiny
from tests.report import written

LAYERS = written.gpt2_layers(blocks=1)
COUNT = len(LAYERS)


def lines_of(steps, **given):
    return [written.step_line(step, COUNT, **given) for step in steps]


def test_all_that_was_written_is_read(tmp_path):
    lines = [written.run_line(LAYERS), *lines_of((10, 20, 30)), written.warning_line(20, "watch")]
    found = read_telemetry(written.write_telemetry(tmp_path, lines))
    assert found.steps.tolist() == [10, 20, 30] and found.notes == () and found.starts == 1
    assert [layer.name for layer in found.layers] == [layer["name"] for layer in LAYERS]
    assert found.layers[0].shape == (1000, 96) and found.layers[0].parameters == 96_000
    assert found.optimizer == "fromage_spectral" and found.warnings == ((20, "watch"),)
    for name in TABLES:
        assert found.tables[name] == pytest.approx(np.array([line[name] for line in lines[1:4]]))
    assert found.metrics["loss"] == pytest.approx([line["loss"] for line in lines[1:4]])
    assert found.metrics["learning_rate"] == pytest.approx([line["lr"] for line in lines[1:4]])
    assert found.metrics["relative_update/matrix"].shape == (3,)
    # Four steps a second, as the times say; the first from the start of the run.
    assert found.steps_per_second[1:] == pytest.approx([4, 4])


def test_a_step_that_was_not_taken_by_a_layer_is_nan(tmp_path):
    line = written.step_line(1, COUNT, loss=None)
    line["relative_update"][2] = None
    found = read_telemetry(written.write_telemetry(tmp_path, [written.run_line(LAYERS), line]))
    unknown = np.isnan(found.tables["relative_update"][0])
    assert unknown.tolist() == [place == 2 for place in range(COUNT)]
    assert math.isnan(found.metrics["loss"][0])


def test_a_resumed_run_trains_its_last_steps_again(tmp_path):
    lines = [
        written.run_line(LAYERS),
        *lines_of((10, 20, 30), loss=1.0),
        written.warning_line(10, "kept"),
        written.warning_line(30, "of a step that is trained again"),
        written.run_line(LAYERS, step=20, time=written.START + 5000),
        *lines_of((30, 40), loss=2.0, time=written.START + 5000),
    ]
    found = read_telemetry(written.write_telemetry(tmp_path, lines))
    assert found.steps.tolist() == [10, 20, 30, 40] and found.starts == 2
    assert found.metrics["loss"].tolist() == [1, 1, 2, 2]
    assert found.warnings == ((10, "kept"),)
    # The hour and more between the two starts is no time of training.
    assert math.isnan(found.steps_per_second[2])


def test_a_run_that_was_started_over_is_a_new_one(tmp_path):
    lines = [
        written.run_line(LAYERS),
        *lines_of((10, 20)),
        written.run_line(LAYERS),
        *lines_of((5,)),
    ]
    assert read_telemetry(written.write_telemetry(tmp_path, lines)).steps.tolist() == [5]


def test_layers_of_a_resumed_run_may_come_in_another_order_or_be_others(tmp_path):
    first = written.step_line(1, COUNT)
    other = [{**LAYERS[0], "name": "new"}, *reversed(LAYERS[1:])]
    lines = [written.run_line(LAYERS), first, written.run_line(other, step=1), *lines_of((2,))]
    table = read_telemetry(written.write_telemetry(tmp_path, lines)).tables["norm"]
    assert math.isnan(table[0, 0])
    assert table[0, 1:] == pytest.approx(first["norm"][:0:-1])


def test_the_initial_norms_are_those_of_the_start_and_not_of_a_resumption(tmp_path):
    norms = [float(place) for place in range(COUNT)]
    later = written.run_line(LAYERS[::-1], step=1, norm=[9.0] * COUNT)
    lines = [written.run_line(LAYERS, norm=norms), *lines_of((1,)), later, *lines_of((2,))]
    found = read_telemetry(written.write_telemetry(tmp_path, lines))
    assert found.initial_norms.tolist() == norms[::-1]
    path = written.write_telemetry(tmp_path, [written.run_line(LAYERS, step=5)])
    assert np.isnan(read_telemetry(path).initial_norms).all()


@pytest.mark.parametrize("left", [0.02, 0.5, 0.99])
def test_a_cut_last_line_costs_that_line_alone(tmp_path, left):
    path = written.write_telemetry(tmp_path, written.telemetry_of(30, LAYERS, 10))
    text = path.read_bytes()
    last = len(text.splitlines(keepends=True)[-1])
    path.write_bytes(text[: len(text) - last + int(left * last)])
    found = read_telemetry(path)
    assert found.steps.tolist() == [10, 20]
    (note,) = found.notes
    assert "last line" in note and "is cut" in note and "step 20" in note


def test_a_resumed_run_writes_on_after_a_cut_line(tmp_path):
    """The new line then stands behind the half of the old one."""
    path = written.write_telemetry(tmp_path, written.telemetry_of(30, LAYERS, 10))
    new = "\n".join(map(json.dumps, [written.run_line(LAYERS, step=20), *lines_of((30, 40))]))
    path.write_bytes(path.read_bytes()[:-50] + b"\n" + new.encode() + b"\n")
    found = read_telemetry(path)
    assert found.steps.tolist() == [10, 20, 30, 40]
    assert found.notes == ("1 of 7 lines of telemetry.jsonl cannot be read (line 4).",)


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\x00\x00",
        b"\xff\xfe{",
        b"[1, 2]",
        b"12",
        b'{"kind": "step"}',
        b'{"kind": "step", "step": "ten"}',
        b'{"kind": "step", "step": true}',
        b'{"kind": "step", "step": 15, "norm": [1, 2]}',
        b'{"kind": "step", "step": 15, "norm": "all"}',
        b'{"kind": "step", "step": 15, "norm": [' + b'"x",' * (COUNT - 1) + b'"x"]}',
        b'{"kind": "step", "step": 15, "norm": [' + b"{}," * (COUNT - 1) + b"{}]}",
        b'{"kind": "run", "step": 10, "layers": ["a"]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_costs_that_line_alone(tmp_path, damage):
    path = written.write_telemetry(tmp_path, written.telemetry_of(20, LAYERS, 10))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage + b"\n", *lines[2:]]))
    found = read_telemetry(path)
    assert found.steps.tolist() == [10, 20]
    assert found.notes == ("1 of 4 lines of telemetry.jsonl cannot be read (line 3).",)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 400])
def test_numbers_that_are_not_finite_are_gaps(tmp_path, number):
    path = tmp_path / "telemetry.jsonl"
    line = json.dumps(written.step_line(1, COUNT)).replace('"loss": ', f'"loss": {number}, "was": ')
    path.write_text(f"{json.dumps(written.run_line(LAYERS))}\n{line}\n")
    found = read_telemetry(path)
    assert found.notes == () and math.isnan(found.metrics["loss"][0])


def test_what_is_not_known_is_left_alone_and_a_newer_format_is_named(tmp_path):
    lines = [written.run_line(LAYERS, format=2), *lines_of((1,)), {"kind": "else", "step": 1}]
    (note,) = read_telemetry(written.write_telemetry(tmp_path, lines)).notes
    assert "format 2" in note and "update hf_relopt" in note


def test_an_empty_file_says_so(tmp_path):
    found = read_telemetry(written.write_telemetry(tmp_path, []))
    assert found.notes == ("telemetry.jsonl is empty.",) and not len(found.steps)


def test_a_real_run_that_was_resumed_has_each_step_once(trained, tmp_path):
    """What RelOptCallback writes is what is read, and what these tests write as well."""
    folder = shutil.copytree(trained / "relopt", tmp_path / "relopt")
    lines = [json.loads(line) for line in (folder / "telemetry.jsonl").read_text().splitlines()]
    assert written.run_line(LAYERS).keys() <= lines[0].keys()
    assert written.step_line(1, COUNT).keys() == lines[1].keys()
    args = tiny.arguments(folder, optim="fromage_spectral", max_steps=12, logging_steps=1)
    resumed = RelOptTrainer(tiny.gpt2(), args, train_dataset=tiny.rows())
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    found = read_telemetry(folder / "telemetry.jsonl")
    assert found.starts == 2 and found.steps.tolist() == [*range(1, 13)] and found.notes == ()
    names = [name for name, _ in resumed.model.named_parameters()]
    assert [layer.name for layer in found.layers] == names
    assert np.isfinite(found.initial_norms).all()
    last = resumed.state.log_history[-2]
    assert found.metrics["relative_update"][-1] == pytest.approx(last["relative_update"], rel=1e-4)
