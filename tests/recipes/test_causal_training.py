"""pretrain_clm.py trains: one process or two, true results on the card, a preset by name."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import load_from_disk
from huggingface_hub import ModelCard
from pretrain_clm import main
from run_folder import RunFolder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_relopt.lns.tensor import LNSTensor
from tests.distributed.ranks import forked
from tests.recipes.recipe_calls import RECIPES, as_if_stopped, refusal, tiny_pretraining


def recomputed_loss(folder) -> float:
    """Mean loss of the saved model on the validation blocks, without Trainer and evaluate."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.loss_type = "ForCausalLM"
    blocks = torch.tensor(load_from_disk(folder / "data")["validation"]["input_ids"])
    with torch.no_grad():
        logits = model(blocks).logits.double()
    losses = -logits.log_softmax(-1)[:, :-1].gather(-1, blocks[:, 1:, None])
    return losses.mean().item()


def test_figures_are_those_of_the_saved_model(trained):
    record = RunFolder(trained).record
    loss = recomputed_loss(trained)
    assert record["after"]["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert record["after"]["eval_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert record["after"]["eval_perplexity"] < record["before"]["eval_perplexity"]


def test_card_shows_the_figures_of_the_run(trained):
    card = ModelCard.load(trained / "README.md")
    after = RunFolder(trained).record["after"]
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured["perplexity"] == after["eval_perplexity"]
    assert "fromage" in card.data.tags
    assert "| steps | 12 of 12 |" in card.text
    assert "Adam" not in card.text


def test_everything_lies_in_the_run_folder(trained):
    there = {path.name for path in trained.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "trainer_state.json", "README.md"} <= there
    assert (trained / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    steps = [entry["step"] for entry in json.loads((trained / "trainer_state.json").read_text())
             ["log_history"] if "relative_update" in entry]  # fmt: skip
    assert steps == list(range(1, 13))
    assert not [name for name in there if "unfinished" in name]


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_train_one_model(tiny_text, tmp_path):
    folder = tmp_path / "two"
    arguments = tiny_pretraining(tiny_text, folder)
    done = forked(2, RECIPES / "pretrain_clm.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert RunFolder(folder).finished
    assert "| launch mode | DDP, 2 processes, gloo |" in (folder / "README.md").read_text()
    assert done.stdout.count("Done: 2 steps") == 1
    # Trainer's eval_loss counts a padded last batch twice in two processes; the metric does not.
    perplexity = RunFolder(folder).record["after"]["eval_perplexity"]
    assert perplexity == pytest.approx(math.exp(recomputed_loss(folder)), rel=1e-5)


def test_a_preset_by_name(tiny_text, tmp_path, capsys):
    arguments = tiny_pretraining(
        tiny_text, tmp_path / "spectral", optim="fromage_spectral", optim_args="momentum=0.9"
    )
    main(arguments)
    record = RunFolder(tmp_path / "spectral").record
    assert record["recipe"]["optim"] == "fromage_spectral" and record["steps"] == 2
    assert record["recipe"]["max_grad_norm"] == 1.0
    text = (tmp_path / "spectral" / "README.md").read_text()
    for words in ("orthogonalized momentum", "momentum 0.9", "| peak learning rate | 0.04 |"):
        assert words in text
    # Another run resumes from its checkpoint.
    on = tiny_pretraining(
        tiny_text, tmp_path / "on", optim="fromage_spectral", optim_args="momentum=0.9",
        max_steps=4, resume_from_checkpoint=tmp_path / "spectral" / "checkpoint-2",
    )  # fmt: skip
    main(on)
    assert RunFolder(tmp_path / "on").record["steps"] == 4


def test_weights_in_codes_are_not_sharded_by_accelerate(tiny_text, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "codes"
    words = tiny_pretraining(tiny_text, folder, optim="integer_madam", lns_format="lns12")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    line = refusal(main, words, capsys)
    assert "FSDP2 cannot shard weights in codes" in line and "Use DDP" in line
    assert not folder.exists()


def test_weights_in_codes_resume_to_the_same_result(tiny_text, tmp_path, capsys):
    folder = tmp_path / "codes"
    words = {"optim": "integer_madam", "max_steps": 4, "save_steps": 2}
    line = refusal(main, tiny_pretraining(tiny_text, folder, **words), capsys)
    assert "--lns_format lns12" in line and not folder.exists()
    line = refusal(main, tiny_pretraining(tiny_text, folder, lns_format="lns9", **words), capsys)
    assert "lns_format is 'lns9'; use one of lns8" in line
    arguments = tiny_pretraining(tiny_text, folder, lns_format="lns12", **words)
    main(arguments)
    *_, hint = [
        words for words in capsys.readouterr().out.splitlines() if "--optim fromage" in words
    ]
    assert "--lns_format" not in hint
    # Not their bytes: safetensors writes metadata in any order.
    whole = load_file(folder / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model.transformer.wte.weight, LNSTensor)
    assert RunFolder(folder).record["after"]["eval_loss"] == pytest.approx(recomputed_loss(folder))
    as_if_stopped(folder, "checkpoint-4")
    main(arguments)
    again = load_file(folder / "model.safetensors")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_goes_on_from_a_pretrained_model_with_its_tokenizer(trained, tiny_text, tmp_path):
    folder = tmp_path / "more"
    arguments = tiny_pretraining(
        tiny_text, folder, config_overrides=None, model_name_or_path=trained, vocab_size=None
    )
    main(arguments)
    record = RunFolder(folder).record
    assert record["before"]["eval_loss"] == pytest.approx(recomputed_loss(trained), abs=1e-5)
    vocabularies = [AutoTokenizer.from_pretrained(path).get_vocab() for path in (folder, trained)]
    assert vocabularies[0] == vocabularies[1]
    assert record["after"]["eval_loss"] != record["before"]["eval_loss"]


def test_arguments_in_a_file(tiny_text, tmp_path):
    words = tiny_pretraining(tiny_text, tmp_path / "json")
    flags = {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}
    numbers = {name: int(value) for name, value in flags.items() if value.isdigit()}
    file = tmp_path / "flags.json"
    file.write_text(json.dumps({**flags, **numbers, "use_cpu": True}))
    main([str(file)])
    assert RunFolder(tmp_path / "json").record["steps"] == 2
