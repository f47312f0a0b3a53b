"""What a card knows of a run: the first and the last evaluation, and that of the weights kept."""

from __future__ import annotations

import json

from hf_relopt.hf.card_facts import CardDetails, evaluations, facts_of_folder, metrics_of
from hf_relopt.hf.run_files import read_run

LOG = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 2, "loss": 2.0},
    {"step": 2, "eval_loss": 1.0, "eval_runtime": 0.1, "eval_samples_per_second": 9.0},
    {"step": 4, "eval_loss": 2.0},
]


def test_the_last_evaluation_counts_or_that_of_the_best_step():
    assert evaluations(LOG, None) == ({"loss": 3.0}, {"loss": 2.0})
    assert evaluations(LOG, 2) == ({"loss": 3.0}, {"loss": 1.0})
    assert evaluations(LOG[:1], None) == ({}, {"loss": 3.0})
    assert evaluations([], 2) == ({}, {})


def test_evaluations_on_several_data_sets_are_one():
    log = [{"step": 4, "eval_one_loss": 1.0}, {"step": 4, "eval_two_loss": 2.0}]
    assert evaluations(log, None)[1] == {"one_loss": 1.0, "two_loss": 2.0}


def test_times_and_words_are_no_metrics():
    assert metrics_of(LOG[2]) == {"loss": 1.0}
    assert metrics_of({"eval_x": "word", "eval_y": 1}) == {"y": 1}
    assert metrics_of(None) == {}


def test_a_folder_gives_what_its_records_say(told_run):
    facts = facts_of_folder(read_run(told_run), CardDetails())
    assert facts.name == "run" and facts.finished and facts.base.endswith("base")
    assert facts.seconds > 0 and facts.command and facts.weights == told_run
    assert facts.part("optimizer")["name"] == "fromage" and facts.part("nothing") == {}
    assert set(facts.after) == {"loss"} and not facts.notes


def test_a_recipe_s_record_is_told_and_what_is_given_wins(told):
    recipe = {
        "finished": True, "before": {"eval_loss": 9.0}, "after": {"eval_loss": 1.0}, "seconds": 7.0,
        "sample": "some text", "command": "make demo", "card": {"summary": "A demo.", "odd": 1},
    }  # fmt: skip
    (told / "run.json").write_text(json.dumps(recipe))
    facts = facts_of_folder(read_run(told), CardDetails(limits="None."))
    assert (facts.before, facts.after) == ({"loss": 9.0}, {"loss": 1.0})
    assert facts.told.summary == "A demo." and facts.told.limits == "None."
    assert (facts.seconds, facts.command, facts.told.sample) == (7.0, "make demo", "some text")
    facts = facts_of_folder(read_run(told), CardDetails(summary="Mine."))
    assert facts.told.summary == "Mine."


def test_the_evaluation_of_the_best_weights_is_the_result(tmp_path):
    state = {"global_step": 4, "max_steps": 4, "log_history": LOG}
    record = {"training": {"best_step": 2}, "evaluations": [{"step": 4, "metrics": LOG[3]}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "relopt_run.json").write_text(json.dumps(record))
    assert facts_of_folder(read_run(tmp_path), CardDetails()).after == {"loss": 1.0}


def test_a_killed_run_has_come_as_far_as_its_newest_state_says(tmp_path):
    record = {"finished": False, "training": {"steps": 0, "max_steps": 8}}
    (tmp_path / "relopt_run.json").write_text(json.dumps(record))
    (tmp_path / "checkpoint-4").mkdir()
    state = {"global_step": 4, "max_steps": 8, "epoch": 0.5, "log_history": LOG}
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(state))
    facts = facts_of_folder(read_run(tmp_path), CardDetails())
    training = facts.part("training")
    assert (training["steps"], training["epochs"], training["max_steps"]) == (4, 0.5, 8)
    assert facts.finished is False and facts.weights is None


def test_parts_of_another_form_are_empty(tmp_path):
    odd = {"training": 3, "optimizer": [], "evaluations": {"a": 1}, "seconds": "x", "model": None}
    (tmp_path / "relopt_run.json").write_text(json.dumps(odd))
    facts = facts_of_folder(read_run(tmp_path), CardDetails())
    assert facts.part("training") == {} and facts.part("optimizer") == {}
    assert facts.seconds is None and facts.after == {}
