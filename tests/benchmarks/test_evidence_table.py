"""Tables of evidence.py: the recommended rate, the best one, and edges, from runs made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest


def run(optim: str, value: float, setting: str = "1", seed: int = 0, **more: Any) -> dict[str, Any]:
    lr = float(optim.rpartition("lr=")[2])
    key = {"setting": setting, "optim": optim, "seed": seed}
    figures = {"valid_loss": value, "diverged_at": None, "state_bytes_per_weight": 4.0}
    return {"key": key, "lr": lr, **figures, **more}


@pytest.fixture
def experiment(load):
    return dataclasses.replace(load("evidence_images").PICTURES, digits=2)


def test_the_best_of_the_rates_is_over_seeds(load, experiment) -> None:
    table = load("evidence_table")
    runs = [
        run("sgd:lr=0.01", 1.0),
        run("sgd:lr=0.1", 0.5),
        run("sgd:lr=0.1", 0.7, seed=1),
        run("sgd:lr=1", 0.4, diverged_at=7),
    ]
    runs += [run("sgd:lr=0.01", 1.2, seed=1), run("sgd:lr=1", 0.4, seed=1)]
    sweep = table.sweeps(runs, experiment)["sgd"]["1"]
    assert (sweep.best_rate, sweep.best) == (0.1, pytest.approx(0.6))
    assert sweep.at_recommended == sweep.best and not sweep.is_at_edge
    page = table.tables(runs, experiment)
    assert "| `sgd` | 0.1 | 0.60 |" in page and "| `sgd` | 0.1 | 0.60 ± 0.10 at 0.1 |" in page
    assert "| `sgd` | 0.1 | 0.00 |" in page and "| `sgd` | 6 | 2 | 1 | 4.00 |" in page


def test_means_are_of_the_seeds_that_all_rates_have(load, experiment) -> None:
    table = load("evidence_table")
    runs = [run("sgd:lr=0.1", 0.5), run("sgd:lr=1", 0.6), run("sgd:lr=1", 0.2, seed=1)]
    assert table.sweeps(runs, experiment)["sgd"]["1"].values == {0.1: 0.5, 1.0: 0.6}
    # What diverged is counted all the same.
    runs.append(run("sgd:lr=0.1", 9.0, seed=2, diverged_at=3))
    assert "| `sgd` | 4 | 1 | 1 | 4.00 |" in table.tables(runs, experiment)
    apart = [run("sgd:lr=1", 0.6, seed=1), run("sgd:lr=0.1", 0.5)]
    assert table.sweeps(apart, experiment)["sgd"]["1"].values == {0.1: 0.5}


def test_the_best_says_how_far_seeds_are_apart(load, experiment) -> None:
    table = load("evidence_table")
    runs = [run("sgd:lr=0.1", value, seed=seed) for seed, value in enumerate((0.5, 0.7))]
    assert "| `sgd` | 0.1 | 0.60 ± 0.10 at 0.1 |" in table.tables(runs, experiment)
    assert "±" not in table.tables(runs[:1], experiment)


def test_the_valley_ends_where_values_are_worse_by_what_a_user_minds(load, experiment) -> None:
    table = load("evidence_table")
    values = {0.001: 9.0, 0.01: 1.4, 0.1: 1.0, 1.0: 1.1, 10.0: 0.9}
    runs = [run(f"sgd:lr={rate:g}", value) for rate, value in values.items()]
    runs[-1]["diverged_at"] = 5
    sweep = table.sweeps(runs, experiment)["sgd"]["1"]
    # .2 is half of the way from 1.0 to 1.4; above, 10 has no number.
    assert sweep.valley(0.2) == (pytest.approx(0.1 / 10**0.5), 1.0)
    assert sweep.valley(0.05) == (pytest.approx(0.1 / 10**0.125), pytest.approx(0.1 * 10**0.5))
    assert sweep.valley(99.0) == (0.001, 1.0)


@pytest.mark.parametrize("rising", [False, True])
def test_the_page_says_how_far_rates_may_differ(load, experiment, rising) -> None:
    table = load("evidence_table")
    near = dataclasses.replace(experiment, near=0.25, rising=rising)
    sign = -1.0 if rising else 1.0
    values = {0.01: 2.0, 0.1: 1.0, 1.0: 1.5, 10.0: 1.9}
    runs = [run(f"sgd:lr={rate:g}", sign * value) for rate, value in values.items()]
    assert "by which factor" not in table.tables(runs, dataclasses.replace(near, near=0.0)).lower()
    page = table.tables(runs, near)
    assert f"| `sgd` | 0.1 | {10**0.75:.2g} |" in page and "lose less than 0.25" in page
    assert "| `sgd` | 0.1 | at least 3.2 |" in table.tables(runs[1:], near)
    assert "| at least 1000 |" in table.tables(runs, dataclasses.replace(near, near=9.0))
    assert "| `sgd` | 0.1 |  |" in table.tables([{**runs[1], "diverged_at": 2}], near)
    assert "at least" not in table.tables(runs[1:2], near)


def test_one_rate_does_not_say_what_tuning_gains(load, experiment) -> None:
    tables = load("evidence_table").tables
    assert "0.00" not in tables([run("sgd:lr=0.1", 0.5)], experiment)
    assert "| `sgd` | 0.1 | 0.20 |" in tables(
        [run("sgd:lr=0.1", 0.5), run("sgd:lr=1", 0.3)], experiment
    )


def test_how_far_the_best_rate_moves(load, experiment) -> None:
    table = load("evidence_table")
    bests = {"2x64": 0.1, "2x128": 0.01}
    runs = [
        run(f"sgd:lr={rate:g}", 1.0 - (rate == best), setting)
        for setting, best in bests.items()
        for rate in (0.01, 0.1)
    ]
    runs.append(run("adamw:lr=0.001", 1.0, "2x64"))
    page = table.tables(runs, experiment)
    assert "| `sgd` | 0.01 | 0.1 | 10 | 2 | 2 |" in page
    assert "moves" not in table.tables(runs[:2], experiment)


def test_edges_gaps_and_what_never_trains(load, experiment) -> None:
    table = load("evidence_table")
    runs = [
        run("adamw:lr=0.0001", 0.3),
        run("adamw:lr=0.001", 0.5),
        run("sgd:lr=0.1", 0.5, setting="2", diverged_at=1),
    ]
    page = table.tables(runs, experiment)
    assert "| `adamw` | 0.001 | 0.30 at 0.0001 (edge) |  |" in page
    assert "| `adamw` | 0.001 | 0.20 |  |" in page
    assert "| `sgd` | 0.1 |  | diverged |" in page
    refused = {"key": runs[2]["key"], "lr": 0.1, "refused": "no hidden matrices"}
    assert "| `sgd` | 0.1 | refused |" in table.tables([refused], experiment)


def test_settings_that_are_numbers_are_in_their_order(load) -> None:
    table = load("evidence_table")
    runs = [run("sgd:lr=1", 1.0, setting=text) for text in ("20", "5", "100")]
    assert table.settings_of(runs) == ["5", "20", "100"]
    runs = [run("sgd:lr=1", 1.0, setting=text) for text in ("2x128", "4x64", "2x64")]
    assert table.settings_of(runs) == ["2x64", "2x128", "4x64"]


def test_more_is_better_where_it_is(load, experiment) -> None:
    table = load("evidence_table")
    rising = dataclasses.replace(experiment, rising=True)
    runs = [run("sgd:lr=0.1", 1.0), run("sgd:lr=1", 2.0), run("sgd:lr=10", 9.0, diverged_at=1)]
    assert table.sweeps(runs, rising)["sgd"]["1"].best_rate == 1.0


def test_a_preset_is_recommended_for_the_length_of_its_run(load, experiment) -> None:
    table = load("evidence_table")
    short = experiment.recommended_rate("fromage_spectral", 300)
    assert short > experiment.recommended_rate("fromage_spectral") == 0.02
    spec = str(experiment.with_rate("fromage_spectral", 0.0, 300))
    record = run(spec, 1.0)
    record["key"]["steps"] = 300
    sweep = table.sweeps([record], experiment)["fromage_spectral"]["1"]
    assert sweep.recommended == short and sweep.at_recommended == 1.0
