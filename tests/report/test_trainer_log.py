"""trainer_state.json: at the top, in checkpoints, cut, of another program."""

from __future__ import annotations

import math
import os

import pytest

from hf_relopt.errors import FormatError
from hf_relopt.report.trainer_log import read_trainer_log
from tests.report.written import trainer_state, write_json


def entries(last, **given):
    return [{"step": step, "loss": 1 / step, **given} for step in range(1, last + 1)]


def state(folder, last, **given):
    return write_json(folder / "trainer_state.json", trainer_state(entries(last), **given))


def test_the_log_at_the_top_counts(tmp_path):
    state(tmp_path / "checkpoint-3", 3)
    state(tmp_path, 6, train_batch_size=4)
    log = read_trainer_log(tmp_path)
    assert log.last_step == 6 and log.state["train_batch_size"] == 4 and log.notes == ()
    assert log.points("loss")[2] == 0.5 and "loss" in log.names


def test_else_that_of_the_newest_checkpoint(tmp_path):
    for last in (3, 20, 9):  # as numbers, not as text
        state(tmp_path / f"checkpoint-{last}", last)
    (tmp_path / "checkpoint-99").mkdir()
    assert read_trainer_log(tmp_path).last_step == 20


def test_a_run_that_was_resumed_after_its_end_has_its_log_in_a_checkpoint(tmp_path):
    old, new = state(tmp_path, 6), state(tmp_path / "checkpoint-9", 9)
    os.utime(old, (1e9, 1e9))
    assert read_trainer_log(tmp_path).last_step == 9
    # A checkpoint that was there before belongs to another run.
    os.utime(new, (1e8, 1e8))
    assert read_trainer_log(tmp_path).last_step == 6


@pytest.mark.parametrize("left", [0.4, 0.7, 0.97])
def test_of_a_cut_file_its_whole_entries_are_shown(tmp_path, left):
    path = state(tmp_path, 40)
    text = path.read_text()
    path.write_text(text[: int(left * len(text))])
    log = read_trainer_log(tmp_path)
    assert 5 < log.last_step <= 40 and len(log.entries) == log.last_step
    (note,) = log.notes
    assert "is cut" in note and f"ends at step {log.last_step}" in note


def test_of_a_cut_file_and_a_checkpoint_the_one_that_knows_more_counts(tmp_path):
    path = state(tmp_path, 40)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    state(tmp_path / "checkpoint-35", 35)
    log = read_trainer_log(tmp_path)
    assert log.last_step == 35 and "that of a checkpoint" in log.notes[0]
    state(tmp_path / "checkpoint-35", 3)
    assert read_trainer_log(tmp_path).last_step > 3


@pytest.mark.parametrize(
    "content", ["", "{", "no json", "[1]", "{}", '{"log_history": 3}', "[" * 99999]
)
def test_a_file_of_which_nothing_can_be_read_is_named(tmp_path, content):
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(FormatError, match=r"trainer_state\.json"):
        read_trainer_log(tmp_path)


def test_none_is_none(tmp_path):
    assert read_trainer_log(tmp_path) is None


def test_strange_entries_are_left_out_and_values_that_are_not_finite_are_gaps(tmp_path):
    log = [
        None,
        3,
        {"loss": 1},
        {"step": "x"},
        {"step": 1, "loss": math.nan},
        {"step": 2, "loss": "a"},
    ]
    write_json(tmp_path / "trainer_state.json", trainer_state([]) | {"log_history": log})
    points = read_trainer_log(tmp_path).points("loss")
    assert list(points) == [1] and math.isnan(points[1])
