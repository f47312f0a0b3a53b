"""The demo's record: the script runs the recipe, whose closing lines quote the record."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from statistics import mean

import pytest

from tests.benchmarks.scripts import records, start

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch):
    """Import a module of recipes/ the way its scripts find it."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    return __import__


def test_the_script_runs_the_recipe_and_repeats_nothing(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and ate.\n" * 400, encoding="utf-8")
    words = ["--out", tmp_path / "result", "--seeds", 1, "--optim", "adamw_torch:1e-3:0.5"]
    words += ["--flags", "--train_file", text, "--use_cpu"]
    words += "--max_steps 2 --vocab_size 270 --block_size 16 --max_eval_samples 4".split()  # noqa: SIM905
    words += ["--config_overrides", "n_layer=1,n_embd=16,n_head=2"]
    start(monkeypatch, load("demo"), *words)
    done = records(tmp_path / "result.jsonl")
    assert [run["key"]["optim"] for run in done] == ["adamw_torch"]
    assert done[0]["settings"]["learning_rate"] == 0.001
    assert done[0]["settings"]["warmup_steps"] == 0.5
    assert done[0]["perplexity"] < done[0]["perplexity_before"]
    monkeypatch.setattr(load("demo"), "train", pytest.fail)
    start(monkeypatch, load("demo"), *words)
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "| `adamw_torch` | 0.001 | 50% |" in page and "2 steps of 16 sequences" in page


def finished(record) -> dict:
    """What run.json holds after the demo, as far as the comparison looks at it."""
    return {
        "recipe": {**record.SETTINGS, "optim": "fromage_spectral", "learning_rate": None,
                   "max_grad_norm": 1.0,
            "warmup_steps": 0, "seed": 42},
        "steps": record.SETTINGS["max_steps"],
        "sequences": record.SEQUENCES,
    }  # fmt: skip


def test_the_quoted_numbers_are_the_record_s(recipe) -> None:
    quoted = recipe("closing_summary")
    path = (ROOT / quoted.RECORD).with_suffix(".jsonl")
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert quoted.RECORD.startswith("benchmarks/results/") and (ROOT / quoted.RECORD).is_file()
    for row in quoted.ROWS:
        # The record keeps what an older version came to under a name of its own.
        now = [run for run in runs if run["key"]["optim"] == row.optim]
        mine = [run for run in now if row.is_of(run["settings"])]
        assert sorted(run["settings"]["seed"] for run in mine) == list(quoted.SEEDS)
        assert row.perplexity == round(mean(run["perplexity"] for run in mine), 1)
        assert all(run["sequences"] == quoted.SEQUENCES for run in mine)
        assert all(run["where"]["versions"]["python"] == quoted.PYTHON for run in mine)


def test_adamw_is_quoted_at_its_best_rate_with_a_worse_one_on_both_sides(recipe) -> None:
    quoted = recipe("closing_summary")
    path = (ROOT / quoted.RECORD).with_suffix(".jsonl")
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    (row,) = [row for row in quoted.ROWS if row.optim.startswith("adamw")]
    whole = {
        run["settings"]["learning_rate"]: run["perplexity"]
        for run in runs
        if run["settings"]["optim"] == row.optim
        and run["settings"]["warmup_steps"] == row.warmup
        and run["settings"]["seed"] == quoted.SEEDS[0]
    }
    best = min(whole, key=lambda rate: whole[rate])
    assert best == row.lr and min(whole) < best < max(whole)


def test_the_demo_is_the_run_that_the_record_is_of(recipe, monkeypatch, tmp_path) -> None:
    """The settings of the script without arguments are those of the record."""
    monkeypatch.chdir(tmp_path)
    script = recipe("pretrain_clm").RECIPE
    quoted = recipe("closing_summary")
    words = ["--use_cpu", "--run_name", "demo"]
    run = recipe("recipe_run").RecipeRun(*recipe("command_line").read_request(script, words))
    run.close()
    record = {**finished(quoted), "recipe": run.settings}
    lines = quoted.comparison(record)
    assert lines and quoted.RECORD in lines[0]
    assert len(lines) == 1 + len(quoted.ROWS)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7}, {"optim_args": "p_bound=2.0"}, {"learning_rate": 0.01}, {"optim": "madam"},
        {"max_steps": 500}, {"train_file": "x.txt"}, {"vocab_size": 2048}, {"bf16": True},
        {"config_overrides": "n_layer=2"}, {"sequences_per_step": 32}, {"warmup_steps": 10},
        {"lr_scheduler_type": "cosine"}, {"max_train_samples": 10}, {"lns_format": "lns8"},
    ],
    ids=str,
)  # fmt: skip
def test_another_run_is_not_compared(change, recipe) -> None:
    quoted = recipe("closing_summary")
    record = finished(quoted)
    assert quoted.comparison(record)
    other = copy.deepcopy(record)
    other["recipe"].update(change)
    assert quoted.comparison(other) == []


@pytest.mark.parametrize("change", [{"steps": 10}, {"sequences": 9}, {"recipe": {}}])
def test_a_shorter_run_or_another_text_is_not_compared(change, recipe) -> None:
    quoted = recipe("closing_summary")
    assert quoted.comparison({**finished(quoted), **change}) == []


def test_each_run_of_the_record_is_compared(recipe) -> None:
    quoted = recipe("closing_summary")
    for row in quoted.ROWS:
        record = finished(quoted)
        record["recipe"] |= {"optim": row.optim, "learning_rate": row.lr, "seed": 43,
                             "warmup_steps": row.warmup}  # fmt: skip
        assert quoted.comparison(record)


def test_it_is_quoted_in_the_closing_lines(recipe, tmp_path, capsys) -> None:
    quoted = recipe("closing_summary")
    folder = recipe("run_folder").RunFolder(tmp_path)
    folder.note(**finished(quoted), before={}, after={"eval_perplexity": 60.0}, seconds=1.0,
                finished=True)  # fmt: skip
    quoted.print_summary(folder, "eval_perplexity", again=False)
    out = capsys.readouterr().out
    assert quoted.RECORD in out and "AdamW" in out and "Fromage" in out
