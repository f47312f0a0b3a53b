"""evidence.py: equal budgets, two real steps of its experiments, resume, what diverged, no data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.benchmarks.scripts import records, start

SMALL = {
    "depth": ("2", "3"),
    "pictures": ("resnet", "vit"),
    "words": ("words",),
    "sizes": ("2x32",),
}


def shrink(script: ModuleType, monkeypatch: pytest.MonkeyPatch, steps: int = 2) -> None:
    """Leave few steps and two optimizers of each experiment."""
    found = {
        name: dataclasses.replace(
            script.EXPERIMENTS[name],
            settings={"quick": settings},
            steps={"quick": steps},
            rivals={"quick": ("adamw", "fromage")},
        )
        for name, settings in SMALL.items()
    }
    monkeypatch.setattr(script, "EXPERIMENTS", found)


def steady(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("seconds", "where")}


def test_every_optimizer_has_as_many_rates_that_lie_alike_around_its_own(load) -> None:
    script = load("evidence")
    experiment = load("evidence_experiment")
    for about in script.EXPERIMENTS.values():
        for size in experiment.PASSES:
            spread: dict[str, list[float]] = {}
            for cell in about.cells(size, [0]):
                if cell.setting != about.settings[size][0]:
                    continue
                rival = experiment.without_rate(cell.optim)
                rate = experiment.optimizer_spec(cell.optim).lr
                spread.setdefault(rival, []).append(rate / about.recommended_rate(rival))
            powers = about.powers.get(size, experiment.POWERS[size])
            for rates in spread.values():
                found = [math.log10(rate) for rate in rates]
                assert found == pytest.approx(sorted(powers, key=abs), abs=0.03)
            assert max(powers) > 0 and set(about.rivals[size]) == set(spread)
            assert size == "quick" or min(powers) < 0


@pytest.mark.parametrize("name", SMALL)
def test_two_steps_are_recorded_resumed_and_reported(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    script = load("evidence")
    shrink(script, monkeypatch)
    text = load("evidence_text")
    monkeypatch.setitem(text.BATCHES, "quick", 1)
    monkeypatch.setitem(text.MOST_WORDS, "quick", 99)
    arguments = ["--experiment", name, "--size", "quick", "--out", tmp_path]
    start(monkeypatch, script, *arguments)
    (path,) = tmp_path.glob("*.jsonl")
    done = records(path)
    assert len(done) == 2 * 3 * len(SMALL[name]) and all(r["key"]["steps"] == 2 for r in done)
    start(monkeypatch, script, *arguments)
    assert records(path) == done
    # A run that is lost is made again, with the same figures.
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[1:]), encoding="utf-8")
    start(monkeypatch, script, *arguments)
    again = records(path)
    assert len(again) == len(done) and steady(again[-1]) == steady(done[0])
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| `fromage` | 0.01 |" in page and "What tuning gains" in page
    assert path.with_suffix(".png").stat().st_size > 1000


def test_runs_in_other_processes_are_the_same(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("evidence")
    # Other processes read the module afresh: the whole experiment's shortest runs.
    experiment = script.EXPERIMENTS["depth"]
    few = dataclasses.replace(experiment, settings={"quick": ("1",)}, steps={"quick": 3})
    monkeypatch.setitem(script.EXPERIMENTS, "depth", few)
    found = []
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        arguments = ["--experiment", "depth", "--size", "quick", "--optim", "adamw"]
        start(monkeypatch, script, *arguments, "--jobs", jobs, "--out", out)
        (path,) = out.glob("*.jsonl")
        found.append(sorted((steady(r) for r in records(path)), key=lambda r: r["lr"]))
    assert found[0] == found[1]


def test_what_diverges_or_is_refused_is_a_result(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("evidence")
    experiment = load("evidence_experiment")
    shrink(script, monkeypatch, steps=12)
    monkeypatch.setitem(experiment.POWERS, "quick", (0.0, 37.0))
    arguments = ["--experiment", "depth", "--size", "quick", "--optim", "sgd", "--optim", "madam"]
    start(monkeypatch, script, *arguments, "--out", tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    by_optim = {r["key"]["optim"]: r for r in records(path) if r["key"]["setting"] == "2"}
    wild = by_optim["sgd:lr=1e+36"]
    assert 1 < wild["diverged_at"] <= 12
    assert by_optim["sgd:lr=0.1"]["diverged_at"] is None
    assert "1 or more" in by_optim["madam:lr=1e+35"]["refused"]
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| `sgd` | 4 | 1 | 2 |" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment", "words", "--data", "words=nobody/nothing"], "nobody/nothing"),
        (["--experiment", "depth", "--data", "depth=nobody/nothing"], "ylecun/mnist"),
        (["--experiment", "depth", "--data", "depth=./none.npz"], "none.npz"),
    ],
)
def test_missing_data_says_where_to_get_it(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    script = load("evidence")
    shrink(script, monkeypatch)
    with pytest.raises(SystemExit, match=message):
        start(monkeypatch, script, *arguments, "--size", "quick", "--out", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim", "adamw:lr=1"], "has a rate"),
        (["--data", "digits"], "is no EXPERIMENT=SOURCE"),
        (["--jobs", "0"], "1 at least"),
        (["--valid_text", "nowhere.txt"], "no such file"),
    ],
)
def test_useless_arguments_are_refused(
    load,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    script = load("evidence")
    with pytest.raises(SystemExit):
        start(monkeypatch, script, "--experiment", "depth", *arguments)
    assert message in capsys.readouterr().err
