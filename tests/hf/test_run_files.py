"""A run's folder may lack files, or hold half of one: what can be read is used, with a note."""

from __future__ import annotations

import json

import pytest

from hf_relopt.errors import FormatError
from hf_relopt.hf.run_files import checkpoints, read_run

STATE = {"global_step": 4, "max_steps": 8, "log_history": [{"step": 4, "loss": 1.0}]}


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / {"state": "trainer_state.json", "record": "relopt_run.json", "recipe": "run.json",
                   "telemetry": "telemetry.jsonl"}[name]).write_text(text)  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path / "nowhere", "no folder"),
        (lambda path: path, "holds no run"),
        (lambda path: put(path / "cut", record='{"format": 1, "mod').joinpath(""), "damaged"),
        (lambda path: put(path / "a", state={"x": 1}).joinpath("trainer_state.json"), "a file"),
    ],
)
def test_a_folder_without_a_run_is_refused_in_one_message(make, words, tmp_path):
    with pytest.raises(FormatError, match=words) as caught:
        read_run(make(tmp_path))
    assert "output_dir" in str(caught.value) and "\n" not in str(caught.value)


def test_the_newest_state_counts_and_older_ones_fill_in_for_a_damaged_one(tmp_path):
    put(tmp_path, record={"format": 1, "finished": True}, state={**STATE, "global_step": 2})
    put(tmp_path / "checkpoint-4", state=STATE)
    put(tmp_path / "checkpoint-10", state='{"global_step": 10, "log_hi')
    found = read_run(tmp_path)
    assert found.log == STATE["log_history"] and found.state["global_step"] == 4
    (note,) = found.notes
    assert "trainer_state.json is damaged" in note
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-10"]


def test_telemetry_stands_in_for_a_log_and_steps_trained_again_count_once(tmp_path):
    lines = [
        {"kind": "run", "step": 0},
        {"kind": "step", "step": 1, "loss": 3.0, "lr": 0.1},
        {"kind": "step", "step": 2, "loss": 9.0, "lr": 0.1},
        {"kind": "warning", "step": 2, "text": "a"},
        {"kind": "run", "step": 1},
        {"kind": "step", "step": 2, "loss": 2.0, "lr": 0.1},
        {"kind": "step", "step": 3, "loss": None, "lr": 0.1},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"kind": "step", "st'
    found = read_run(put(tmp_path, record={"format": 1}, telemetry=text))
    assert [(entry["step"], entry["loss"]) for entry in found.log] == [
        (1, 3.0),
        (2, 2.0),
        (3, None),
    ]
    assert found.log[0]["learning_rate"] == 0.1
    (note,) = found.notes
    assert "training loss is not finite at step 3" in note


@pytest.mark.parametrize(
    ("files", "finished"),
    [
        ({"record": {"finished": True}}, True),
        ({"record": {"finished": False}}, False),
        ({"record": {"finished": True}, "recipe": {"recipe": {}}}, False),
        ({"record": {"finished": True}, "recipe": {"finished": True}}, True),
        ({"state": STATE}, None),
        ({"state": {**STATE, "max_steps": 4}}, True),
    ],
)
def test_whether_a_run_has_finished_is_said_by_its_records(files, finished, tmp_path):
    assert read_run(put(tmp_path, **files)).finished is finished


def test_nan_in_a_log_is_noted(tmp_path):
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0}]
    found = read_run(put(tmp_path, record={"format": 1}, state={**STATE, "log_history": log}))
    assert found.log[1]["step"] == 2
    assert any("not finite at step 2" in note for note in found.notes)


@pytest.mark.parametrize("odd", [[], "text", 3, {"log_history": 3}, {"log_history": [3, {}]}])
def test_a_state_of_another_form_leaves_the_run_without_a_log(odd, tmp_path):
    found = read_run(put(tmp_path, record={"format": 1}, state=odd))
    assert found.log == [] and any("no log of losses" in note for note in found.notes)


def test_a_checkpoint_of_a_run_is_read_with_the_run_s_record(tmp_path):
    put(tmp_path, record={"format": 1, "command": "c"})
    found = read_run(put(tmp_path / "checkpoint-4", state=STATE))
    assert found.record["command"] == "c" and found.log
