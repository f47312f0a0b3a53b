"""quality.py trains every task, goes on where it was, and says who is better and how soon."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from tests.benchmarks.scripts import records, sentences, start

TEXT = "the cat sat on the mat and ate. it was a very good rat, says the cat.\n"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 60, encoding="utf-8")
    return path


def run(optim: str, seed: int, loss: float, glances: list, **more: object) -> dict:
    """A record as quality.py writes it; the rate is the one in the name, or .01."""
    lr = float(optim.partition("lr=")[2].partition(",")[0] or 0.01)
    key = {"task": "shakespeare", "optim": optim, "seed": seed, "steps": 100, **more}
    figures = {"validation_loss": loss, "lr": lr, "seconds": 1.0, "state_bytes_per_weight": 4.0}
    return {"key": key, **figures, "glances": glances}


def cells(table: str, row: str) -> list[str]:
    """The cells of the row that starts with `row`."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| `{row}` |")]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_characters_train_resume_and_are_reported(
    load, monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path
) -> None:
    script = load("quality")
    arguments = ["--task", "shakespeare", "--steps", 2, "--batches", 1]
    arguments += ["--out", tmp_path / "result"]
    training = [*arguments, "--train_file", text_file]
    for optim in ("adamw:lr=1e-3", "sgd:lr=.1", "muon:lr=5e-3"):
        training += ["--optim", optim]
    start(monkeypatch, script, *training)
    done = records(tmp_path / "result.jsonl")
    names = ["adamw:lr=0.001", "sgd:lr=0.1", "muon:lr=0.005"]
    assert [record["key"]["optim"] for record in done] == names
    state = [record["state_bytes_per_weight"] for record in done]
    assert state[:2] == pytest.approx([8, 4], abs=0.01) and 4 < state[2] < 8
    for record in done:
        assert [step for step, _ in record["glances"]] == [1, 2]
        assert record["glances"][-1][1] == pytest.approx(record["validation_loss"], abs=1e-3)
        assert len(record["curve"]) == 2 and len(record["options"]) >= 1
    start(monkeypatch, script, *training, "--optim", "madam:lr=.03,p_scale=5", "--optim", "best")
    again = records(tmp_path / "result.jsonl")
    assert again[:3] == done and len(again) == 4
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    (tmp_path / "result.md").unlink()
    start(monkeypatch, script, *arguments, "--report_only")
    assert (tmp_path / "result.md").read_text(encoding="utf-8") == page
    assert all(f"`{record['key']['optim']}`" in page for record in again)
    assert str(tmp_path) not in page and "--train_file text.txt" in page
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_word_pieces_are_learnt_from_the_training_file_alone(load) -> None:
    word_pieces = load("word_pieces").word_pieces
    codes = word_pieces(TEXT * 20, "Ein ganz anderer Text: äöü.\n", vocabulary=300)
    assert codes.vocabulary <= 300 and codes.train.max() < codes.vocabulary
    # 256 bytes to begin with: any text can be written.
    assert len(codes.train) < len(TEXT * 20) / 2 and len(codes.valid) >= 20
    other = word_pieces(TEXT * 20, TEXT, vocabulary=300)
    assert torch.equal(codes.train, other.train)


def test_word_pieces_train(
    load, monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT[::-1] * 30, encoding="utf-8")
    arguments = ["--train_file", text_file, "--valid_file", other, "--steps", 2, "--batches", 1]
    arguments += ["--optim", "adamw:lr=1e-3", "--out", tmp_path / "result"]
    start(monkeypatch, load("quality"), "--task", "wordpieces", *arguments)
    (record,) = records(tmp_path / "result.jsonl")
    assert record["key"]["task"] == "wordpieces" and 0 < record["validation_loss"] < 9


def test_a_gpt2_trains_and_keeps_its_word_pieces(
    load, monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path
) -> None:
    """The task of GPT-2 124M with a model that is not."""
    monkeypatch.setattr(load("quality_tasks"), "GPT2", load("gpt2_text").Size(1, 32, 2, 8, 2))
    other = tmp_path / "other.txt"
    other.write_text(TEXT[::-1] * 30, encoding="utf-8")
    arguments = ["--task", "gpt2", "--train_file", text_file, "--valid_file", other, "--steps", 2]
    arguments += ["--batches", 1, "--optim", "adamw:lr=1e-3", "--out", tmp_path / "result"]
    start(monkeypatch, load("quality"), *arguments)
    (first,) = records(tmp_path / "result.jsonl")
    assert first["key"]["task"] == "gpt2" and "peak_bytes" not in first
    # The text itself is not read again.
    text_file.write_text("", encoding="utf-8")
    (tmp_path / "result.jsonl").unlink()
    start(monkeypatch, load("quality"), *arguments)
    (second,) = records(tmp_path / "result.jsonl")
    assert second["validation_loss"] == first["validation_loss"]


@pytest.mark.parametrize("extra", [["--device", "cuda"], ["--compile"], ["--codes", "kept"]])
def test_what_is_for_gpt2_is_refused_elsewhere(
    load, monkeypatch: pytest.MonkeyPatch, capsys, text_file: Path, extra: list[str]
) -> None:
    with pytest.raises(SystemExit):
        start(
            monkeypatch,
            load("quality"),
            *("--task", "shakespeare", "--train_file", text_file, *extra),
        )
    assert "are for --task gpt2" in capsys.readouterr().err


def test_a_table_of_a_gpu_has_its_seconds_and_its_memory(load) -> None:
    record = {**run("adamw:lr=1e-3", 0, 3.5, []), "peak_bytes": 3 * 2**30}
    table = load("quality_table").table([record])
    assert "| GPU s | peak GiB |" in table
    assert cells(table, "adamw:lr=0.001")[-2:] == ["1", "3.0"]


def test_sst2_trains_and_ranks_by_accuracy(
    load, monkeypatch: pytest.MonkeyPatch, tiny_bert: Path, tmp_path: Path
) -> None:
    arguments = ["--train_file", sentences(tmp_path / "train.tsv", 40)]
    arguments += ["--valid_file", sentences(tmp_path / "valid.tsv", 20)]
    arguments += ["--model", tiny_bert, "--steps", 2, "--out", tmp_path / "result"]
    arguments += ["--optim", "adamw:lr=1e-3", "--optim", "muon:lr=1e-3", "--optim", "madam"]
    start(monkeypatch, load("quality"), "--task", "sst2", *arguments)
    done = records(tmp_path / "result.jsonl")
    assert [record["lr"] for record in done] == [0.001, 0.001, 0.01]
    assert all(0 <= record["accuracy"] <= 100 for record in done)
    assert "accuracy, %" in (tmp_path / "result.md").read_text(encoding="utf-8")


def test_widths_train_each_size_at_each_rate(
    load, monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path
) -> None:
    arguments = ["--train_file", text_file, "--steps", 2, "--batches", 1]
    arguments += ["--sizes", "2x64", "8x64", "--out", tmp_path / "result"]
    arguments += ["--optim", "fromage", "--optim", "fromage:lr=.02"]
    start(monkeypatch, load("quality"), "--task", "widths", *arguments)
    keys = [record["key"] for record in records(tmp_path / "result.jsonl")]
    sizes = ["2x64", "2x64", "8x64", "8x64"]
    assert [key["size"] for key in keys] == sizes
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "| `fromage` | 2x64 | 2 |" in page and "| `fromage` | 8x64 | 2 |" in page
    assert (tmp_path / "result.png").exists()


def test_the_table_compares_seeds_that_both_sides_have(load) -> None:
    table = load("quality_table").table(
        [
            run("adamw:lr=0.001", 0, 2.0, [[50, 2.5], [100, 2.1]]),
            run("adamw:lr=0.002", 0, 1.8, [[50, 2.4], [100, 2.0]]),
            # Only the best rate has seed 1: it is the best on seed 0, not by its mean.
            run("adamw:lr=0.002", 1, 2.6, [[50, 2.4], [100, 2.6]]),
            run("adamw:lr=0.003", 0, float("nan"), [[50, 9.0], [100, float("nan")]]),
            run("madam", 0, 1.7, [[50, 2.2], [100, 1.8]]),
            run("sgd:lr=0.1", 0, 3.0, [[50, 3.5], [100, 3.1]]),
        ]
    )
    assert cells(table, "adamw:lr=0.001")[2] == "2.000"
    best = cells(table, "adamw:lr=0.002")
    assert best[2:6] == ["**2.200**", "1.800 to 2.600", "2", "+0.000"]
    assert "nan" in cells(table, "adamw:lr=0.003")[2]
    # 2.0 lies half-way between 2.2 at step 50 and 1.8 at step 100.
    assert cells(table, "madam")[4:7] == ["1", "-0.100", "75"]
    assert cells(table, "sgd:lr=0.1")[6] == "never"


@pytest.mark.parametrize(
    ("target", "percent"), [(3.0, 25.0), (2.0, 50.0), (1.5, 75.0), (0.9, None)]
)
def test_the_first_crossing_counts(load, target: float, percent: float | None) -> None:
    find = load("quality_table").percent_of_steps
    glances = [(5, 3.0), (10, 2.0), (15, 1.5), (20, 1.6)]
    assert find(glances, target) == (None if percent is None else pytest.approx(percent))


def test_the_table_of_sizes_shows_the_kept_rate(load) -> None:
    losses = {
        ("fromage", "2x64"): 1.9,
        ("fromage:lr=0.02", "2x64"): 2.0,
        ("fromage:lr=0.005", "2x64"): 2.0,
        ("fromage", "2x512"): 1.63,
        ("fromage:lr=0.02", "2x512"): 1.6,
        ("adamw:lr=0.001", "4x128"): 1.8,
        ("adamw:lr=0.002", "4x128"): 1.7,
        ("adamw:lr=0.001", "2x512"): 1.5,
        ("adamw:lr=0.002", "2x512"): 2.5,
    }
    found = [run(optim, 0, loss, [], size=size) for (optim, size), loss in losses.items()]
    table = load("quality_widths").widths_table(found)
    rows = {}
    for line in table.splitlines()[2:]:
        name, size, *rest = [cell.strip() for cell in line.strip("|").split("|")]
        rows[name, size] = rest
    small, large = rows["`fromage`", "2x64"], rows["`fromage`", "2x512"]
    assert small[:7] == ["3", "0.01", "1.900", "0.01", "1.900", "+0.000", "1"]
    assert large[:7] == ["2", "0.02 (edge)", "1.600", "0.01", "1.630", "+0.030", "2"]
    # AdamW has no default here: it keeps the best rate of the base.
    assert rows["`adamw`", "2x512"][3:6] == ["0.002", "2.500", "+1.000"]


@pytest.mark.parametrize("task", ["shakespeare", "wordpieces", "sst2", "widths"])
def test_the_default_comparison_is_printed_and_brackets_adamw(
    load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    start(monkeypatch, load("quality"), "--task", task, "--grid")
    shown = capsys.readouterr().out.split()
    assert len(set(shown)) == len(shown)
    assert sum(word.startswith("adamw:lr=") for word in shown) == 5
    assert "fromage_spectral" in shown


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--task", "shakespeare"], "--train_file"),
        (["--task", "wordpieces", "--train_file", "a"], "--valid_file"),
        (["--task", "shakespeare", "--train_file", "a", "--valid_file", "b"], "leave --valid"),
        (["--task", "shakespeare", "--train_file", "a", "--sizes", "2x64"], "leave --sizes"),
        (["--task", "widths", "--train_file", "a", "--optim", "best"], "all rates"),
        (["--task", "shakespeare", "--train_file", "a"], "--train_file a: no such file"),
        (["--task", "sst2", "--optim", "lookahead"], "none of"),
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_a_hint(
    load,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    hint: str,
) -> None:
    with pytest.raises(SystemExit):
        start(monkeypatch, load("quality"), *arguments)
    assert hint in capsys.readouterr().err


def small_gpt2(load) -> torch.nn.Module:
    set_seed(0)
    return load("gpt2_text").make_model(load("gpt2_text").Size(1, 32, 2, 8, 2), 11)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(load) -> None:
    spec = load("optimizer_spec")
    model = small_gpt2(load)
    word = spec.optimizer_spec("muon:lr=.01,adamw_lr=.002")
    optimizer = spec.build_optimizer(word, model, betas=(0.9, 0.99), weight_decay=0.1)
    muon, adamw = optimizer.param_groups
    assert (muon["lr"], adamw["lr"]) == (0.01, 0.002) and adamw["betas"] == (0.9, 0.99)
    names = {weight: name for name, weight in model.named_parameters()}
    matrices = {names[weight].split(".", 3)[-1] for weight in muon["params"]}
    assert matrices == {
        f"{part}.weight" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert len(muon["params"]) + len(adamw["params"]) == len(names)
    # One schedule moves both rates, and both step.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, spec.schedule("linear", 2))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    tokens = torch.arange(8)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    scheduler.step()
    assert (muon["lr"], adamw["lr"]) == (0.005, 0.001)
    for name in ("transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"):
        assert not torch.equal(before[name], dict(model.named_parameters())[name])


@pytest.mark.parametrize("name", ["adamh", "muonh"])
def test_on_the_sphere_matrices_keep_their_norm_and_adamw_has_the_rest(load, name: str) -> None:
    spec = load("optimizer_spec")
    model = small_gpt2(load)
    word = spec.optimizer_spec(f"{name}:embedding.lr=.004")
    optimizer = spec.build_optimizer(word, model, betas=(0.9, 0.99), weight_decay=0.1)
    rates = {group["role"]: (group["rule"], group["lr"]) for group in optimizer.param_groups}
    assert rates == {
        "embedding": ("adamw", 0.004),
        "vector": ("adamw", 0.02),
        "matrix": ("fromage", 0.02),
    }
    assert word.relative and spec.rate_in_use(word, optimizer) == 0.02
    # Records of what they were before they were presets are read, and not made again.
    old = spec.optimizer_spec(f"{name}:embedding_lr=0.0002,lr=0.001,vector_lr=0.0002")
    assert str(old) == f"{name}:embedding_lr=0.0002,lr=0.001,vector_lr=0.0002" and old.lr == 0.001
    with pytest.raises(ValueError, match="no option 'embedding_lr'"):
        spec.build_optimizer(old, model)
    matrix = model.transformer.h[0].mlp.c_fc.weight
    norm = matrix.norm().item()
    tokens = torch.arange(8)[None]
    for _ in range(3):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    assert matrix.norm().item() == pytest.approx(norm, rel=1e-5)


def test_madam_with_a_first_moment_of_no_memory_is_madam(load) -> None:
    spec = load("optimizer_spec")
    found = []
    for word in ("madam:p_scale=2", "madam_momentum:p_scale=2,momentum=0", "madam_momentum"):
        model = small_gpt2(load)
        parsed = spec.optimizer_spec(word)
        optimizer = spec.build_optimizer(parsed, model, betas=(0.9, 0.99), weight_decay=0.1)
        assert parsed.relative and spec.rate_in_use(parsed, optimizer) == 0.01
        for step in range(5):
            tokens = torch.arange(8)[None].roll(step)
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        # Gradients of attention's biases are partly rounding noise, which both would normalise.
        named = [weight for name, weight in model.named_parameters() if "c_attn.bias" not in name]
        found.append(torch.cat([weight.detach().flatten() for weight in named]))
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found[0], found[2], rtol=1e-3)


def test_three_schedules_have_names_and_a_fourth_is_refused(load) -> None:
    schedule = load("optimizer_spec").schedule
    factor = schedule("warmup_linear", 1100)
    assert factor(0) < 0.02 and factor(100) == 1.0 and factor(600) == 0.5 and factor(1100) == 0.0
    assert schedule("warmup_linear", 300)(30) == 1.0, "a short run warms up for a tenth of it"
    assert schedule("linear", 300)(150) == 0.5 and schedule("cosine", 300)(300) < 0.11
    with pytest.raises(SystemExit, match="warmup_linear"):
        schedule("step", 300)
    with pytest.raises(argparse.ArgumentTypeError):
        load("optimizer_spec").optimizer_spec("muons")
