"""Every benchmark runs end to end with tiny arguments, repeats nothing and writes its table."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from tests.benchmarks.scripts import records, sentences, start
from tests.distributed.ranks import ROOT, forked


def test_a_spec_is_read_into_options_and_back_into_one_spelling(load) -> None:
    read = load("optimizer_spec").optimizer_spec
    spec = read("madam:lr=.03,p_scale=5,backend=loop")
    assert dict(spec.options) == {"lr": 0.03, "p_scale": 5.0, "backend": "loop"}
    assert str(spec) == "madam:backend=loop,lr=0.03,p_scale=5.0" == str(read(str(spec)))
    assert read("fromage:p_bound=null").options == (("p_bound", None),)
    again = read(str(read("fromage:p_bound=null,nesterov=false,direction=momentum")))
    assert dict(again.options) == {"p_bound": None, "nesterov": False, "direction": "momentum"}
    assert read("fromage").lr is None


def test_a_name_with_a_dot_is_for_one_role(load) -> None:
    spec = load("optimizer_spec")
    word = spec.optimizer_spec("fromage_spectral:embedding.beta=.5,embedding.p_bound=3")
    model = torch.nn.Sequential(torch.nn.Embedding(6, 4), torch.nn.Linear(4, 4, bias=False))
    options = {
        tuple(weight.shape): group
        for group in spec.build_optimizer(word, model).param_groups
        for weight in group["params"]
    }
    assert (options[6, 4]["beta"], options[6, 4]["p_bound"]) == (0.5, 3.0)
    assert (options[4, 4]["beta"], options[4, 4]["p_bound"]) == (0.95, None)


@pytest.mark.parametrize("text", ["lookahead:lr=.1", "adamw:lr", "adamw:lr=", "adamw:=1"])
def test_a_malformed_spec_is_refused(load, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        load("optimizer_spec").optimizer_spec(text)


def test_the_read_me_s_table_has_every_name(load) -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    table = page.split("| name | what |\n")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[1:]]
    named = [name.strip() for cell in cells for name in cell.split(",")]
    assert sorted(named) == sorted(load("optimizer_spec").NAMES)


def test_the_two_schedules_start_and_end_where_the_setting_says(load) -> None:
    spec = load("optimizer_spec")
    linear = spec.linear_to_zero(10)
    assert (linear(0), linear(5), linear(10)) == (1.0, 0.5, 0.0)
    cosine = spec.warmup_cosine_to_tenth(2000, 100)
    assert 0 < cosine(0) < 0.02
    assert cosine(100) == pytest.approx(1.0)
    assert cosine(1050) == pytest.approx(0.55)
    assert cosine(2000) == pytest.approx(0.1)


def test_a_half_written_line_is_repeated_and_nothing_else(load, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    log = load("run_log").RunLog(path)
    log.append({"optim": "a"}, {"loss": 1.0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": {"optim": "b"}, "lo')
    assert log.finished({"optim": "a"})["loss"] == 1.0
    assert log.finished({"optim": "b"}) is None
    log.append({"optim": "b"}, {"loss": 2.0})
    assert [record["loss"] for record in log.records()] == [1.0, 2.0]


def test_a_recorded_command_is_one_that_a_shell_takes(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = [str(tmp_path / "step.py"), "--only", "fused|compiled", "--optim", "madam:lr=.1"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    plain = load("run_log").command()
    assert plain == "python benchmarks/step.py --only 'fused|compiled' --optim madam:lr=.1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks = load("run_log").command()
    assert ranks == plain.replace("python", "torchrun --standalone --nproc_per_node 2")


def test_a_person_s_reading_outlives_the_next_report(load, tmp_path: Path) -> None:
    run_log = load("run_log")
    path = tmp_path / "page.md"
    run_log.write_report(path, "Title", "Setting.", "table 1", "Not read yet.", [])
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("Not read yet.", "Ours is slower."), encoding="utf-8")
    run_log.write_report(path, "Title", "Setting.", "table 2", "Not read yet.", [])
    text = path.read_text(encoding="utf-8")
    assert "table 2" in text and "Ours is slower." in text and "Not read yet." not in text


def test_shakespeare_trains_resumes_and_writes_table_and_plot(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("shakespeare")
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and ate. " * 150, encoding="utf-8")
    arguments = ["--train_file", text, "--steps", 16, "--batches", 1, "--out", tmp_path / "result"]
    arguments += ["--optim", "fromage:lr=.03", "--optim", "adamw:lr=3e-3"]
    start(monkeypatch, script, *arguments)
    done = records(tmp_path / "result.jsonl")
    assert [record["key"]["optim"] for record in done] == ["fromage:lr=0.03", "adamw:lr=0.003"]
    letters = len(set(text.read_text(encoding="utf-8")))
    for record in done:
        # Below a uniform guess: it has learnt something.
        assert 0 < record["validation_loss"] < torch.log(torch.tensor(letters)).item()
        assert len(record["curve"]) == 16
    start(monkeypatch, script, *arguments, "--optim", "madam:lr=.03,p_scale=5")
    again = records(tmp_path / "result.jsonl")
    assert again[:2] == done and len(again) == 3
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert all(f"`{record['key']['optim']}`" in page for record in again)
    assert str(tmp_path) not in page
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_step_time_knows_gpt2_s_shapes(load) -> None:
    script = load("step_time")
    shapes = [torch.Size(shape) for _, shape in script.parameters(script.SIZES["gpt2"])]
    assert len(shapes) == 148
    assert sum(shape.numel() for shape in shapes) == 124_439_808


def test_step_time_measures_every_row_and_the_real_state(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("step_time")
    arguments = ["--size", "tiny", "--rounds", 1, "--device", "cpu", "--out", tmp_path / "result"]
    start(monkeypatch, script, *arguments, "--only", "foreach|muon|sgd")
    done = records(tmp_path / "result.jsonl")
    state = {
        (record["key"]["optimizer"], record["key"]["dtype"]): record["state_bytes_per_weight"]
        for record in done
    }
    assert state["AdamW fused", "float32"] == pytest.approx(8, abs=0.01)
    assert state["Muon (matrices only)", "float32"] == pytest.approx(4, abs=0.01)
    # 28 tensors of 29,088 weights: three float32 numbers a tensor.
    assert state["Fromage foreach", "float32"] == pytest.approx(28 * 12 / 29_088)
    assert state["Madam foreach", "bfloat16"] == pytest.approx(4 + 28 * 12 / 29_088)
    assert all(record["ms"] > 0 for record in done)
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "not a measurement" in page and "| Madam foreach, nearest | bfloat16 |" in page


def test_spectral_step_compares_with_muon_and_with_a_training_step(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load("spectral_step")
    words = ["--size", "tiny", "--layers", 2, "--rounds", 1, "--device", "cpu", "--training"]
    words += ["--only", "foreach", "--out", tmp_path / "result"]
    start(monkeypatch, script, *words)
    done = {r["key"]["optimizer"]: r for r in records(tmp_path / "result.jsonl")}
    assert set(done) == {"Muon", "spectral foreach", "spectral foreach, cut", "training step"}
    assert done["Muon"]["ratio"] == 1 and 0 < done["training step"]["share"] < 1
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "not a measurement" in page and "which is" in page


def test_telemetry_is_compared_with_a_training_without(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["--size", "tiny", "--rounds", 1, "--device", "cpu", "--optim", "fromage", "madam"]
    start(monkeypatch, load("telemetry"), *words, "--out", tmp_path / "result")
    done = records(tmp_path / "result.jsonl")
    keys = {(record["key"]["optimizer"], record["key"]["kind"]) for record in done}
    kinds = ("metrics", "metrics and snapshots")
    assert keys == {(name, kind) for name in ("fromage", "madam") for kind in kinds}
    for record in done:
        assert record["with_ms"] > record["step_ms"] > 0
        assert record["ratio"] == pytest.approx(record["with_ms"] / record["step_ms"])
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "not a measurement" in page and "with telemetry / without" in page


def test_batches_hold_every_sentence_once_and_follow_the_seed(
    load, tiny_bert: Path, tmp_path: Path
) -> None:
    sst2 = load("sst2")
    data = sst2.read_sentences(sentences(tmp_path / "train.tsv", 96), str(tiny_bert))
    batches = sst2.train_batches(data, steps=3, seed=5)
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(96))
    assert all(map(torch.equal, batches, sst2.train_batches(data, steps=3, seed=5)))
    assert not torch.equal(batches[0], sst2.train_batches(data, steps=3, seed=6)[0])
    batch = data.batch(batches[0])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == 0)


# peft 0.21 asks transformers 5.23 for a name that transformers renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", ["lora_sst2", "finetune_sst2"])
def test_sst2_scripts_train_and_resume(
    load, monkeypatch: pytest.MonkeyPatch, tiny_bert: Path, tmp_path: Path, name: str
) -> None:
    script = load(name)
    arguments = ["--train_file", sentences(tmp_path / "train.tsv", 70)]
    arguments += ["--validation_file", sentences(tmp_path / "valid.tsv", 20)]
    arguments += ["--model", tiny_bert, "--steps", 3, "--out", tmp_path / "result"]
    arguments += ["--optim", "fromage", "--optim", "madam:lr=.01,min_scale=.1"]
    arguments += ["--optim", "adamw:lr=1e-3"]
    start(monkeypatch, script, *arguments)
    done = records(tmp_path / "result.jsonl")
    assert len(done) == 3
    for record in done:
        assert 0 <= record["accuracy"] <= 100 and 0 < record["valid_loss"] < 2
    assert done[1]["lr"] == 0.01
    assert done[1]["options"]["min_scale"] == 0.1 and done[1]["options"]["rule"] == "madam"
    assert done[2]["options"]["weight_decay"] == 0.0
    start(monkeypatch, script, *arguments)
    assert records(tmp_path / "result.jsonl") == done
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "`madam:lr=0.01,min_scale=0.1`" in page and str(tmp_path) not in page


@pytest.mark.dist
def test_sharded_step_compares_both_layouts(tmp_path: Path) -> None:
    arguments = ["--size", "tiny", "--rounds", "1", "--only", "fromage foreach"]
    script = ROOT / "benchmarks" / "sharded_step.py"
    done = forked(2, script, *arguments, "--out", str(tmp_path / "result"))
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "result.jsonl")
    keys = {(record["key"]["optimizer"], record["key"]["layout"]) for record in found}
    names = ("AdamW fused", "Fromage foreach")
    assert keys == {(name, layout) for name in names for layout in ("DDP", "FSDP2")}
    assert all(record["ms"] > 0 and record["key"]["ranks"] == 2 for record in found)
    assert "not a measurement" in (tmp_path / "result.md").read_text(encoding="utf-8")


@pytest.mark.dist
def test_gpt2_trains_alike_in_both_layouts(tmp_path: Path) -> None:
    arguments = ["--size", "tiny", "--steps", "4", "--optim", "fromage:lr=.03"]
    arguments += ["--out", str(tmp_path / "result")]
    for layout, ranks in (("single", 1), ("fsdp2", 2)):
        script = ROOT / "benchmarks" / "gpt2_124m.py"
        done = forked(ranks, script, *arguments, "--layout", layout)
        assert done.returncode == 0, done.stderr
    single, fsdp2 = records(tmp_path / "result.jsonl")
    assert fsdp2["ranks"] == 2
    assert single["losses"] == pytest.approx(fsdp2["losses"], rel=1e-5)
    assert single["losses"][-1] < single["losses"][0]
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_distance_budget_holds_what_it_says_and_measures_what_is_forgotten(
    load, monkeypatch: pytest.MonkeyPatch, tiny_bert: Path, tmp_path: Path
) -> None:
    script = load("distance_budget")
    other = tmp_path / "other.txt"
    other.write_text("\n".join("a very fine film with good actors " * 4 for _ in range(3)))
    train, valid = (sentences(tmp_path / f"{n}.tsv", n) for n in (96, 20))
    words = ["--train_file", train, "--validation_file", valid, "--other_text", other]
    words += ["--model", tiny_bert, "--steps", 3, "--seeds", 0, "--out", tmp_path / "result"]
    start(monkeypatch, script, *words, "--rho", 0.001)
    held, free = records(tmp_path / "result.jsonl")
    assert held["largest_update"] == 0.001 < free["largest_update"]
    assert 0 <= held["cosine_distance"] < free["cosine_distance"]
    start(monkeypatch, script, *words, "--rho", 0.001)
    assert len(records(tmp_path / "result.jsonl")) == 2
    page = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "| none |" in page and "| 0.001 |" in page
