"""evidence.py: equal budgets, two real steps of its experiments, resume, what diverged, no data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

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
            steps={"quick": steps, "here": steps},
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
                spread.setdefault(rival, []).append(
                    rate / about.recommended_rate(rival, cell.steps)
                )
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
    # Other processes read the module afresh; what they run is in the cell.
    experiment = script.EXPERIMENTS["depth"]
    few = dataclasses.replace(experiment, settings={"quick": ("1",)}, steps={"quick": 3, "here": 3})
    monkeypatch.setitem(script.EXPERIMENTS, "depth", few)
    found = []
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        arguments = ["--experiment", "depth", "--size", "quick", "--optim", "adamw"]
        start(monkeypatch, script, *arguments, "--jobs", jobs, "--out", out)
        (path,) = out.glob("*.jsonl")
        found.append(sorted((steady(r) for r in records(path)), key=lambda r: r["lr"]))
    assert found[0] == found[1]


def test_runs_of_other_lengths_are_left_out_of_the_page(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("evidence")
    shrink(script, monkeypatch)
    arguments = ["--experiment", "depth", "--size", "quick", "--optim", "adamw", "--out", tmp_path]
    start(monkeypatch, script, *arguments)
    start(monkeypatch, script, *arguments, "--steps", 1, "--setting", "1")
    (path,) = tmp_path.glob("*.jsonl")
    assert len(records(path)) == 9
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| `adamw` | 6 | 1 | 0 |" in page and "; 2 steps." in page
    short = path.with_name(path.stem + "_1_steps.md").read_text(encoding="utf-8")
    assert "| `adamw` | 3 | 1 | 0 |" in short and "; 1 steps." in short


def test_files_are_known_by_what_is_in_them(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("evidence")
    shrink(script, monkeypatch)
    monkeypatch.setitem(load("evidence_text").BATCHES, "quick", 1)
    for number in (1, 2):
        file = tmp_path / str(number) / "text.txt"
        file.parent.mkdir()
        file.write_text(f"{number} bottles of ink\n" * 400, encoding="utf-8")
        arguments = ["--experiment", "words", "--size", "quick", "--data", f"words={file}"]
        start(monkeypatch, script, *arguments, "--optim", "adamw", "--out", tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    assert len({record["key"]["data"] for record in records(path)}) == 2


def test_a_text_is_measured_on_what_it_was_not_trained_on(load, tmp_path: Path) -> None:
    text_of = load("local_text").text_of
    file = tmp_path / "text.txt"
    file.write_text("".join(map(chr, range(97, 117))), encoding="utf-8")
    train, valid = (text_of(str(file), part) for part in ("train", "validation"))
    assert (train + valid, len(valid)) == (text_of(str(file)), 2)
    python = [text_of("python", part) for part in ("train", "validation")]
    assert len(python[0]) == 990_000 and len(python[1]) == 110_000


def networks(load, name: str) -> list[torch.nn.Module]:
    """A small network of each setting of an experiment."""
    images, text, gpt2 = load("evidence_images"), load("evidence_text"), load("gpt2_text")
    return {
        "depth": lambda: [load("evidence_depth").perceptron(64, 2, 10)],
        "pictures": lambda: [images.network(k, "here", 1, 32, 10) for k in ("resnet", "vit")],
        "words": lambda: [gpt2.make_model(text.WORDS, 50, tied=False)],
        "sizes": lambda: [gpt2.make_model(gpt2.Size(1, 32, 1), 50)],
    }[name]()


@pytest.mark.parametrize("name", SMALL)
def test_every_optimizer_can_be_made_for_every_network_or_says_why_not(load, name: str) -> None:
    script, spec = load("evidence"), load("optimizer_spec")
    refused = set()
    for rival in script.EXPERIMENTS[name].rivals["full"]:
        if spec.optimizer_spec(rival).name in spec.OTHERS and not find_spec("pytorch_optimizer"):
            continue
        for network in networks(load, name):
            made = script.EXPERIMENTS[name].with_rate(rival, 0.0)
            try:
                optimizer = spec.build_optimizer(made, network, weight_decay=0.1)
            except spec.OptimizerRefused:
                refused.add((made.name, type(network).__name__))
                continue
            assert any(group["params"] for group in optimizer.param_groups)
    assert refused <= {("muon", "ResNetForImageClassification")}
    assert bool(refused) == (name == "pictures")


def test_what_diverges_or_is_refused_is_a_result(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("evidence")
    shrink(script, monkeypatch, steps=12)
    arguments = ["--experiment", "depth", "--size", "quick", "--optim", "sgd", "--optim", "madam"]
    start(monkeypatch, script, *arguments, "--powers", "0", "37", "--out", tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    by_optim = {r["key"]["optim"]: r for r in records(path) if r["key"]["setting"] == "2"}
    wild = by_optim["sgd:lr=1e+36"]
    assert 1 < wild["diverged_at"] <= 12
    assert by_optim["sgd:lr=0.1"]["diverged_at"] is None
    assert "0 <= lr < 1" in by_optim["madam:lr=1e+35"]["refused"]
    # Where some weights step further than others, the optimizer says itself that it is too far.
    further = ["--optim", "fromage:matrix.lr_factor=9", "--powers", "1.3", "--out", tmp_path]
    start(monkeypatch, script, *arguments[:4], *further)
    found = [r for r in records(path) if "lr_factor" in r["key"]["optim"]]
    assert found and all("lr_factor is 9" in r["refused"] for r in found)
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
        (["--steps", "0"], "give 1 or more"),
        (["gan", "--setting", "2"], "is for one experiment"),
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


def test_pictures_are_moved_by_four_pixels_at_most_and_mirrored_or_not(load) -> None:
    varied, side = load("evidence_images").varied, 12
    pictures = 1 + torch.arange(40 * 2 * side * side).view(40, 2, side, side).float()
    found = varied(pictures, torch.Generator().manual_seed(0))
    assert found.shape == pictures.shape
    kinds = set()
    for before, after in zip(pictures, found, strict=True):
        # What fell off leaves zeros; in the middle there are pixels in any case.
        middle = after[0, side // 2, side // 2 - 1 : side // 2 + 1]
        mirrored = bool(middle[0] > middle[1])
        undone = after.flip(-1) if mirrored else after
        first = undone[0].nonzero()[0]
        place = (before[0] == undone[0][tuple(first)]).nonzero()[0]
        down, right = (place - first).tolist()
        padded = torch.nn.functional.pad(before, (4, 4, 4, 4))
        cut = padded[:, 4 + down : 4 + down + side, 4 + right : 4 + right + side]
        assert torch.equal(undone, cut) and max(abs(down), abs(right)) <= 4
        kinds.add((mirrored, down, right))
    assert len(kinds) > 30 and len({mirrored for mirrored, _, _ in kinds}) == 2
