"""What a run was, from whichever of its files says so."""

from __future__ import annotations

import pytest

from hf_relopt.report.facts import (
    command_of,
    duration,
    facts_of,
    is_finished,
    model_name,
    optimizer_name,
    peak_lr,
    seconds_of,
)
from hf_relopt.report.run_files import read_run
from tests.report import written


def test_everything_that_the_record_says_is_there(whole_run):
    run = read_run(whole_run)
    found = dict(facts_of(run))
    assert found["Optimizer"] == "fromage_spectral: fromage along an orthogonalized momentum"
    assert found["Options"] == "momentum 0.95, p_bound 1"
    assert found["Model"] == "GPT2LMHeadModel, gpt2, 441,792 parameters, float32"
    assert found["Launch mode"] == "single process" and found["Hardware"] == "cpu, Xeon, 8 GB"
    assert found["Versions"] == "hf_relopt 0.1.0, torch 2.13.0, transformers 5.24.0"
    assert found["Sequences per step"] == "16 (16 per device)" and found["Seed"] == "42"
    assert "Data seed" not in found and "Began with" not in found
    assert command_of(run).startswith("python train.py")
    assert seconds_of(run) == 15 and is_finished(run) is True and peak_lr(run) == 0.02


def test_links_of_a_cards_sentence_become_their_text(tmp_path):
    record = written.record()
    record["optimizer"]["words"] = ["Fromage ([a, 2020](https://b.c/d)) and [x]"]
    written.write_json(tmp_path / "relopt_run.json", record)
    shown = dict(facts_of(read_run(tmp_path)))["Optimizer"]
    assert shown == "fromage_spectral: Fromage (a, 2020) and [x]"


def test_the_time_of_a_run_that_was_killed_is_the_latest_that_is_known(tmp_path):
    written.write_json(tmp_path / "relopt_run.json", written.record(seconds=0.0, finished=False))
    written.write_telemetry(tmp_path, written.telemetry_of(40, written.gpt2_layers(), 10))
    run = read_run(tmp_path)
    assert seconds_of(run) == pytest.approx(10) and is_finished(run) is False


def test_a_recipes_record_says_some(tmp_path):
    recipe = {
        "optim": "madam",
        "learning_rate": 0.01,
        "warmup_steps": 0.1,
        "bf16": True,
        "fp16": False,
    }
    content = {"recipe": recipe, "command": "make demo", "seconds": 75.0, "steps": 9}
    written.write_json(tmp_path / "run.json", {**content, "finished": True})
    run = read_run(tmp_path)
    found = dict(facts_of(run))
    assert found == {"Optimizer": "madam", "Peak learning rate": "0.01", "Precision": "bf16",
                     "Warm-up": "10 % of the steps", "Model": "unknown model"}  # fmt: skip
    assert seconds_of(run) == 75 and is_finished(run) and command_of(run) == "make demo"


def test_a_stock_trainers_log_says_few(trained):
    run = read_run(trained / "adamw")
    assert optimizer_name(run) == "unknown optimizer" and model_name(run) == "GPT2LMHeadModel"
    assert seconds_of(run) > 0 and is_finished(run) is True and peak_lr(run) > 0
    assert is_finished(read_run(trained / "adamw" / "checkpoint-6")) is False


def test_telemetry_alone_knows_its_time_and_start(tmp_path):
    written.write_telemetry(tmp_path, written.telemetry_of(40, written.gpt2_layers(), 10))
    run = read_run(tmp_path)
    assert seconds_of(run) == pytest.approx(10) and is_finished(run) is None
    assert dict(facts_of(run))["Started"] == "2026-09-21 14:13 UTC"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.5, "0.5 s"), (15, "15 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (7290, "2 h 02 min")],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown
