"""recipes/pretrain_clm.py: two real steps, resume, two processes, true results on the card."""

from __future__ import annotations

import json
import math
import random
import signal
import time

import pytest
import torch
from datasets import load_from_disk
from huggingface_hub import ModelCard
from pretrain_clm import main
from run_folder import RunFolder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.recipes.recipe_calls import start, tiny_pretraining


def contents(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_text):
    """An unbroken run of 12 steps with a checkpoint after every third."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    main(tiny_pretraining(tiny_text, folder, max_steps=12, eval_steps=6, save_steps=3))
    return folder


def recomputed_loss(folder) -> float:
    """Mean loss of the saved model on the validation blocks, without Trainer and evaluate."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.loss_type = "ForCausalLM"
    blocks = torch.tensor(load_from_disk(folder / "data")["validation"]["input_ids"])
    with torch.no_grad():
        logits = model(blocks).logits.double()
    losses = -logits.log_softmax(-1)[:, :-1].gather(-1, blocks[:, 1:, None])
    return losses.mean().item()


def test_figures_are_those_of_the_saved_model(finished):
    record = RunFolder(finished).record
    loss = recomputed_loss(finished)
    assert record["after"]["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert record["after"]["eval_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert record["after"]["eval_perplexity"] < record["before"]["eval_perplexity"]


def test_card_shows_the_figures_of_the_run(finished):
    card = ModelCard.load(finished / "README.md")
    after = RunFolder(finished).record["after"]
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured["perplexity"] == after["eval_perplexity"]
    assert "fromage" in card.data.tags
    assert "| steps | 12 of 12 |" in card.text
    assert "Adam" not in card.text


def test_everything_lies_in_the_run_folder(finished):
    there = {path.name for path in finished.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "trainer_state.json", "README.md"} <= there
    assert (finished / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    steps = [entry["step"] for entry in json.loads((finished / "trainer_state.json").read_text())
             ["log_history"] if "relative_update" in entry]  # fmt: skip
    assert steps == list(range(1, 13))
    assert not [name for name in there if "unfinished" in name]


def test_started_again_when_finished_it_changes_nothing(finished, tiny_text, capsys):
    before = contents(finished)
    main(tiny_pretraining(tiny_text, finished, max_steps=12, eval_steps=6, save_steps=3))
    printed = capsys.readouterr().out
    assert contents(finished) == before
    assert "is finished" in printed and "--overwrite_output_dir" in printed


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(finished, tiny_text, tmp_path):
    folder = tmp_path / "killed"
    arguments = tiny_pretraining(tiny_text, folder, max_steps=12, eval_steps=6, save_steps=3)
    process = start("pretrain_clm.py", arguments)
    # From the first checkpoint on anything may be under way: a step, a checkpoint, the results.
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoint-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    main(arguments)
    assert_same_result(folder, finished)


@pytest.mark.parametrize(
    "damage",
    ["a checkpoint cut short", "no checkpoint yet", "results half written", "no data yet"],
)
def test_what_a_kill_leaves_behind_is_mended(damage, finished, tiny_text, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name, content in contents(finished).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    record = json.loads((folder / "run.json").read_text())
    for entry in ("finished", "after", "steps", "seconds", "sample", "hints"):
        del record[entry]
    (folder / "run.json").write_text(json.dumps(record))
    for name in ("README.md", "loss_curve.png", "trainer_state.json"):
        (folder / name).unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    if damage == "a checkpoint cut short":
        (folder / "checkpoint-12" / "model.safetensors").write_bytes(b"\x10")
        (folder / "checkpoint-12" / "trainer_state.json").unlink()
    elif damage != "results half written":
        for name in contents(folder):
            if name.startswith("checkpoint-") or (damage == "no data yet" and name[:5] == "data/"):
                (folder / name).unlink()
    if damage == "no data yet":
        for path in sorted(folder.glob("data/**"), reverse=True):
            path.rmdir()
    main(tiny_pretraining(tiny_text, folder, max_steps=12, eval_steps=6, save_steps=3))
    assert_same_result(folder, finished)


def assert_same_result(folder, unbroken):
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, unbroken))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    records = [RunFolder(path).record for path in (folder, unbroken)]
    for when in ("before", "after"):
        assert records[0][when]["eval_perplexity"] == records[1][when]["eval_perplexity"]
    assert records[0]["sample"] == records[1]["sample"]
    assert records[0]["finished"]


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_train_one_model(tiny_text, tmp_path):
    folder = tmp_path / "two"
    arguments = tiny_pretraining(tiny_text, folder)
    process = start("pretrain_clm.py", arguments, processes=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert RunFolder(folder).finished
    assert "| processes | 2 on cpu |" in (folder / "README.md").read_text()
    assert output.count("Done: 2 steps") == 1
    # Trainer's eval_loss counts a padded last batch twice in two processes; the metric does not.
    perplexity = RunFolder(folder).record["after"]["eval_perplexity"]
    assert perplexity == pytest.approx(math.exp(recomputed_loss(folder)), rel=1e-5)


def test_a_run_shorter_than_its_logging_steps_shows_its_loss(tiny_text, tmp_path, capsys):
    folder = tmp_path / "short"
    main(tiny_pretraining(tiny_text, folder, max_steps=3, logging_steps=100))
    out = capsys.readouterr().out
    assert "step 1/3  loss" in out and "step 3/3  loss" in out
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 3]


@pytest.mark.parametrize("optim", ["madam", "adamw_torch"])
def test_other_optimizers(optim, tiny_text, tmp_path):
    main(tiny_pretraining(tiny_text, tmp_path / optim, optim=optim))
    text = (tmp_path / optim / "README.md").read_text()
    assert ("Madam" in text) == (optim == "madam")
    assert ("AdamW" in text) == (optim == "adamw_torch")


def test_a_preset_by_name(tiny_text, tmp_path, capsys):
    arguments = tiny_pretraining(
        tiny_text, tmp_path / "spectral", optim="fromage_spectral", optim_args="momentum=0.9"
    )
    main(arguments)
    record = RunFolder(tmp_path / "spectral").record
    assert record["recipe"]["optim"] == "fromage_spectral" and record["steps"] == 2
    assert record["recipe"]["max_grad_norm"] == 1.0
    text = (tmp_path / "spectral" / "README.md").read_text()
    for words in ("orthogonalized momentum", "momentum 0.9", "| peak learning rate | 0.02 |"):
        assert words in text
    # Another run resumes from its checkpoint.
    on = tiny_pretraining(
        tiny_text, tmp_path / "on", optim="fromage_spectral", optim_args="momentum=0.9",
        max_steps=4, resume_from_checkpoint=tmp_path / "spectral" / "checkpoint-2",
    )  # fmt: skip
    main(on)
    assert RunFolder(tmp_path / "on").record["steps"] == 4


def test_goes_on_from_a_pretrained_model_with_its_tokenizer(finished, tiny_text, tmp_path):
    folder = tmp_path / "more"
    arguments = tiny_pretraining(
        tiny_text, folder, config_overrides=None, model_name_or_path=finished, vocab_size=None
    )
    main(arguments)
    record = RunFolder(folder).record
    assert record["before"]["eval_loss"] == pytest.approx(recomputed_loss(finished), abs=1e-5)
    vocabularies = [AutoTokenizer.from_pretrained(path).get_vocab() for path in (folder, finished)]
    assert vocabularies[0] == vocabularies[1]
    assert record["after"]["eval_loss"] != record["before"]["eval_loss"]


def test_overwriting_starts_over(tiny_text, tmp_path):
    folder = tmp_path / "again"
    main(tiny_pretraining(tiny_text, folder))
    main(tiny_pretraining(tiny_text, folder, max_steps=3, overwrite_output_dir=True))
    assert RunFolder(folder).record["steps"] == 3
    assert not (folder / "checkpoint-2").exists() or RunFolder(folder).finished


def test_arguments_in_a_file(tiny_text, tmp_path):
    words = tiny_pretraining(tiny_text, tmp_path / "json")
    flags = {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}
    numbers = {name: int(value) for name, value in flags.items() if value.isdigit()}
    file = tmp_path / "flags.json"
    file.write_text(json.dumps({**flags, **numbers, "use_cpu": True}))
    main([str(file)])
    assert RunFolder(tmp_path / "json").record["steps"] == 2
