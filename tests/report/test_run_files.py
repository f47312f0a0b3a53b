"""A run's folder: whole, in parts, damaged, or no run at all."""

from __future__ import annotations

import math
import os

import pytest

from hf_relopt.errors import FormatError
from hf_relopt.report.run_files import read_run
from tests.report import written


def test_a_run_of_relopt_trainer(trained):
    run = read_run(trained / "relopt")
    assert run.name == "relopt" and run.steps == 12 and run.faults == ()
    assert run.series("loss").steps.tolist() == [*range(1, 13)]
    assert run.series("eval_loss").steps.tolist() == [4, 8, 12]
    assert (run.series("relative_update").values > 0).all()
    assert run.config["architectures"] == ["GPT2LMHeadModel"]


def test_a_run_of_a_stock_trainer_has_less(trained):
    run = read_run(trained / "adamw")
    assert run.series("loss") is not None and run.series("relative_update") is None
    assert run.telemetry is None and run.record == {}


def test_a_checkpoint_is_a_run_as_far_as_it_went(trained):
    assert read_run(trained / "adamw" / "checkpoint-6").steps == 6


def test_telemetry_goes_on_where_the_trainers_log_ends(whole_run):
    """A run that was killed: its last checkpoint is older than its last step."""
    path = whole_run / "trainer_state.json"
    entries = [{"step": 10, "loss": 5.0}, {"step": 20, "loss": 4.0}]
    written.write_json(path, written.trainer_state(entries))
    series = read_run(whole_run).series("loss")
    assert series.steps.tolist() == [10, 20, *range(22, 61, 2)]
    assert series.values[0] == 5.0
    path.unlink()
    assert read_run(whole_run).series("loss").steps.tolist() == [*range(2, 61, 2)]


def test_evaluations_of_the_record_stand_in_for_a_log(tmp_path):
    evaluations = [{"step": 0, "metrics": {"eval_loss": 7.0}}, {"step": 9, "metrics": None}, 3]
    evaluations.append({"step": 60, "metrics": {"eval_loss": 6.0}})
    written.write_json(tmp_path / "relopt_run.json", written.record(evaluations=evaluations))
    series = read_run(tmp_path).series("eval_loss")
    assert (series.steps.tolist(), series.values.tolist()) == ([0, 60], [7, 6])
    log = [{"step": 60, "eval_loss": 5.0}]
    written.write_json(tmp_path / "trainer_state.json", written.trainer_state(log))
    assert read_run(tmp_path).series("eval_loss").values.tolist() == [7, 5]


def test_values_that_are_not_finite_are_gaps_and_the_last_value_is_a_finite_one(tmp_path):
    log = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}]
    written.write_json(tmp_path / "trainer_state.json", written.trainer_state(log))
    series = read_run(tmp_path).series("loss")
    assert series.gaps == [2, 3] and series.last == (1, 3.0)


def test_a_file_that_cannot_be_read_costs_that_file_alone(whole_run):
    for name, content in (("relopt_run.json", '{"model": {"cl'), ("run.json", "[]")):
        (whole_run / name).write_text(content)
    run = read_run(whole_run)
    assert run.record == {} and run.steps == 60
    assert len(run.faults) == 2 and "is cut" in run.faults[0] and "run.json" in run.faults[1]


@pytest.mark.parametrize(
    "record",
    [
        {"model": 3, "optimizer": [], "training": None, "launch": "x", "hardware": [1]},
        {"optimizer": {"words": 3, "groups": {"a": 1}, "options": [1]}, "training": {"steps": "x"}},
        {"model": {"parameters": "many", "class": ["a"]}, "git": {"commit": 5}, "seconds": "long"},
    ],
)
def test_a_record_of_other_types_is_no_error(tmp_path, record):
    from hf_relopt.report.comparison import results_of, settings_of
    from hf_relopt.report.run_page import run_page

    written.write_json(tmp_path / "relopt_run.json", record)
    written.write_json(tmp_path / "run.json", {"recipe": 4, "seconds": None, "steps": []})
    run = read_run(tmp_path)
    assert "Nothing was logged yet" in run_page(run)
    assert results_of(run) and settings_of([run, run])


def test_no_folder_a_file_and_a_folder_without_a_run(tmp_path, trained):
    cases = [
        (tmp_path / "none", "There is no folder"),
        (trained / "relop", f"Did you mean {trained / 'relopt'}"),
        (trained / "adamw" / "trainer_state.json", "is a file. Pass the folder"),
        (trained, f"holds some: {trained / 'adamw'}, {trained / 'relopt'}"),
        (tmp_path, "holds no log of a run"),
        (tmp_path / "a\0b", "There is no folder"),
        (tmp_path / ("x" * 300), "cannot be read|no folder"),
    ]
    for path, message in cases:
        with pytest.raises(FormatError, match=message):
            read_run(path)


def test_a_folder_whose_files_are_all_damaged_names_each(tmp_path):
    (tmp_path / "trainer_state.json").write_text("{")
    (tmp_path / "run.json").write_text("x")
    with pytest.raises(
        FormatError, match=r"(?s)trainer_state\.json is cut.*|run\.json is not JSON"
    ) as error:
        read_run(tmp_path)
    assert "trainer_state.json" in str(error.value) and "run.json" in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    tmp_path.chmod(0)
    try:
        with pytest.raises(FormatError, match="Permission denied"):
            read_run(tmp_path)
    finally:
        tmp_path.chmod(0o700)
