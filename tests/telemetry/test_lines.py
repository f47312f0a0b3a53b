"""The file of a run: whole lines, whatever was killed, none of steps trained again."""

from __future__ import annotations

import json

from hf_relopt.telemetry.lines import Lines, plain, read


def step(number, **more):
    return {"kind": "step", "step": number, **more}


def run(at):
    return {"kind": "run", "step": at}


def test_lines_are_there_at_once_and_are_json_alone(tmp_path):
    lines = Lines(tmp_path / "new" / "telemetry.jsonl")
    lines.write(step(1, norm=[1 / 3, float("nan"), None], metrics={"drt": float("inf")}))
    text = lines.path.read_text(encoding="utf-8")
    assert text.endswith("\n") and "NaN" not in text and "Infinity" not in text
    found = json.loads(text)
    assert found == step(1, norm=[0.333333, None, None], metrics={"drt": None})


def test_a_time_keeps_its_seconds():
    assert plain({"time": 1795900123.4567}) == {"time": 1795900123.457}
    assert plain((1, "a", True, 1e-12)) == [1, "a", True, 1e-12]


def test_a_half_written_line_is_left_out_and_harms_no_other(tmp_path):
    lines = Lines(tmp_path / "telemetry.jsonl")
    lines.write(run(0))
    with open(lines.path, "a", encoding="utf-8") as file:
        file.write('{"kind": "step", "st')
    lines.write(step(2))
    assert read(lines.path) == [run(0), step(2)]


def test_steps_that_were_trained_again_are_read_once(tmp_path):
    lines = Lines(tmp_path / "telemetry.jsonl")
    for line in (run(0), step(10), step(20), step(30), run(20), step(30, loss=1.0), step(40)):
        lines.write(line)
    assert read(lines.path) == [run(0), step(10), step(20), run(20), step(30, loss=1.0), step(40)]
    lines.write(run(0))  # another run in the same folder
    assert read(lines.path) == [run(0)]


def test_no_file_is_no_lines(tmp_path):
    assert read(tmp_path / "none.jsonl") == []
