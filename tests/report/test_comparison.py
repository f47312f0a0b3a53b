"""Several runs: names, settings that differ, results."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_relopt.errors import ConfigError
from hf_relopt.report.comparison import check_paths, names_of, results_of, settings_of
from hf_relopt.report.run_files import read_run
from tests.report import written


def test_folders_of_one_name_are_told_apart_by_those_above():
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/b/x/run"), Path("/a/other")]
    assert names_of(paths) == ["a/x/run", "y/run", "b/x/run", "other"]
    assert names_of([Path("/run"), Path("/a/run")]) == ["//run", "a/run"]


def test_what_cannot_be_compared(tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    with pytest.raises(ConfigError, match=f"hf-relopt report {one}"):
        check_paths([one])
    with pytest.raises(ConfigError, match="the same folder"):
        check_paths([one, tmp_path / "two", tmp_path / "two" / ".." / "one"])
    with pytest.raises(ConfigError, match="40 at most"):
        check_paths([tmp_path / str(number) for number in range(41)])


def run(folder, name, record=None, recipe=None):
    if record is not None:
        written.write_json(folder / name / "relopt_run.json", record)
    if recipe is not None:
        written.write_json(folder / name / "run.json", {"recipe": recipe, "command": name})
    log = written.trainer_state([{"step": 1, "loss": 1.0}], train_batch_size=4)
    written.write_json(folder / name / "trainer_state.json", log)
    return read_run(folder / name)


def named(runs):
    return {setting.name: setting for setting in settings_of(runs)}


def test_settings_that_differ(tmp_path):
    other = written.record(versions={"hf_relopt": "0.1.0", "torch": "2.6.0"}, seconds=99.0)
    other["optimizer"] = {**other["optimizer"], "options": {"momentum": 0.9, "p_bound": 1.0}}
    other["training"] = {**other["training"], "seed": 7, "steps": 30}
    found = named([run(tmp_path, "a", written.record()), run(tmp_path, "b", other)])
    differ = {name: setting.values for name, setting in found.items() if setting.differs}
    assert differ == {
        "seed": ("42", "7"),
        "option momentum": ("0.95", "0.9"),
        "versions.torch": ("2.13.0", "2.6.0"),
    }
    assert found["versions.transformers"].values == ("5.24.0", None)
    assert not found["versions.transformers"].is_everywhere
    assert found["option p_bound"].is_everywhere and found["train_batch_size"].values == ("4", "4")


def test_a_recipe_and_a_record_name_the_same_things_once(tmp_path):
    recipe = {"optim": "adamw_torch", "learning_rate": 0.002, "seed": 43, "bf16": True}
    recipe["optim_args"] = None
    found = named([run(tmp_path, "a", written.record()), run(tmp_path, "b", recipe=recipe)])
    assert found["optimizer"].values == ("fromage_spectral", "adamw_torch")
    assert found["peak_lr"].values == ("0.02", "0.002") and found["seed"].values == ("42", "43")
    assert found["bf16"].values == (None, "yes") and found["optim_args"].values == (None, "not set")
    assert not {"optim", "learning_rate", "command", "format", "max_steps.x"} & found.keys()


def test_runs_of_real_trainers(trained):
    runs = [read_run(trained / name) for name in ("relopt", "adamw")]
    differ = {setting.name for setting in settings_of(runs) if setting.differs}
    assert "peak_lr" in differ
    results = [results_of(each) for each in runs]
    assert all(each["steps"] == "12" and each["wall time"].endswith("s") for each in results)
    for each, result in zip(runs, results, strict=True):
        assert float(result["validation loss"]) == pytest.approx(
            each.series("eval_loss").values[-1], rel=1e-3
        )


def test_results_of_a_run_that_diverged_and_was_killed(tmp_path):
    log = [{"step": 5, "loss": float("nan"), "eval_loss": 2.0}, {"step": 9, "eval_loss": 5.0}]
    written.write_json(tmp_path / "trainer_state.json", written.trainer_state(log))
    assert results_of(read_run(tmp_path)) == {
        "steps": "9 of 60, not finished",
        "training loss, last logged": "not finite",
        "validation loss": "5",
        "validation loss, best": "2",
    }
