"""The card describes the optimizer and the figures of the run it was written by."""

from __future__ import annotations

import re

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from hf_relopt import RelOptTrainer
from hf_relopt.hf.model_card import write_model_card


def trained(output_dir, **arguments) -> RelOptTrainer:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip
    model.loss_type = "ForCausalLM"
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(16, (6, 8))]
    trainer = RelOptTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output_dir), max_steps=2, per_device_train_batch_size=3, use_cpu=True,
            save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True, **arguments,
        ),
        train_dataset=rows,
        eval_dataset=rows,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def madam(tmp_path_factory):
    trainer = trained(tmp_path_factory.mktemp("madam"), optim="madam", learning_rate=0.02, seed=5)
    return trainer, trainer.evaluate()


def test_madam_is_not_called_adam(madam):
    trainer, _ = madam
    text = write_model_card(trainer).read_text()
    assert "arxiv.org/abs/2006.14560" in text
    assert not re.search(r"\bAdam\b|AdamW|betas|epsilon", text)
    assert "madam" in ModelCard(text).data.tags


def test_figures_are_the_measured_ones(madam):
    trainer, measured = madam
    path = write_model_card(trainer, metrics_before={"eval_loss": 3.25}, metrics=measured)
    card = ModelCard.load(path)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", measured["eval_loss"])
    assert f"| loss | 3.25 | {measured['eval_loss']:.4g} |" in card.text


def test_without_figures_the_last_evaluation_is_taken(madam):
    trainer, measured = madam
    (result,) = ModelCard.load(write_model_card(trainer)).data.eval_results
    assert result.metric_value == measured["eval_loss"]


def test_settings_are_those_of_the_run(madam):
    trainer, _ = madam
    text = write_model_card(trainer).read_text()
    for row in ("peak learning rate | 0.02", "schedule | linear", "steps | 2 of 2",
                "sequences per step | 3", "seed | 5", "precision | float32"):  # fmt: skip
        assert f"| {row} |" in text


def test_every_weight_is_in_the_table_once(madam):
    trainer, _ = madam
    table = write_model_card(trainer).read_text().split("## What each weight follows")[1]
    rows = re.findall(r"^\| \w+ \| madam \| 0.02 \| ([\d,]+) \| ([\d,]+) \|$", table, re.MULTILINE)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    assert sum(int(tensors.replace(",", "")) for tensors, _ in rows) == len(parameters)
    total = sum(int(count.replace(",", "")) for _, count in rows)
    assert total == sum(p.numel() for p in parameters)


def test_overrides_are_named(tmp_path):
    trainer = trained(
        tmp_path, optim="fromage", optim_args="p_bound=2.0,vector.rule=adamw,vector.lr=1e-3"
    )
    text = write_model_card(trainer).read_text()
    assert re.search(r"^\| vector \| adamw \| 0.001 \|", text, re.MULTILINE)
    assert "p_bound 2.0" in text and "arxiv.org/abs/2002.03432" in text


def test_the_direction_is_named_and_nothing_that_is_not_read(tmp_path):
    trainer = trained(tmp_path, optim="fromage_spectral")
    text = write_model_card(trainer).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| optimizer |")]
    for words in ("arxiv.org/abs/2002.03432", "orthogonalized momentum", "the momentum (",
                  "p_bound 4.0 and 1.0", "momentum 0.9 and 0.95"):  # fmt: skip
        assert words in line, line
    for words in ("None", "beta", "split", "scale tensor", "direction", "nesterov"):
        assert words not in line, line
    table = text.split("## What each weight follows")[1]
    for row in ("embedding | fromage, momentum, by row | 0.01",
                "matrix | fromage, spectral, 3 blocks | 0.02",
                "vector | fromage, entry by entry"):  # fmt: skip
        assert f"| {row} |" in table
    assert "fromage" in ModelCard(text).data.tags


def test_the_paper_s_rule_has_no_words_about_directions(tmp_path):
    text = write_model_card(trained(tmp_path, optim="fromage")).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| optimizer |")]
    assert line.endswith("2002.03432)) (seed 0, min_scale 0.1) |")


def test_adamh_by_hand(tmp_path):
    text = write_model_card(
        trained(
            tmp_path, optim="fromage",
            optim_args="direction=adam,bound=sphere,embedding.rule=adamw,vector.rule=adamw",
        )
    ).read_text()  # fmt: skip
    (line,) = [line for line in text.splitlines() if line.startswith("| optimizer |")]
    for words in ("root of the second moment", "bound sphere", "momentum 0.9", "beta 0.999"):
        assert words in line, line
    assert "p_bound" not in line


def test_other_optimizers_are_described_by_their_class(tmp_path):
    text = write_model_card(trained(tmp_path, optim="adamw_torch")).read_text()
    assert "AdamW (" in text and "betas (0.9, 0.999)" in text
    assert "fromage" not in text


def test_a_sample_cannot_break_out_of_its_fence(madam):
    trainer, _ = madam
    text = write_model_card(trainer, sample="```\n# not a heading").read_text()
    assert "````text\n```\n# not a heading\n````" in text


def test_details_reach_the_metadata(madam, tmp_path):
    trainer, _ = madam
    path = write_model_card(
        trainer, tmp_path / "card.md", model_name="a name", language="en", license="apache-2.0",
        tasks="text-generation", tags="tiny", dataset="some text", dataset_tags="user/text",
        finetuned_from="user/base",
    )  # fmt: skip
    data = ModelCard.load(path).data
    assert (data.language, data.license, data.pipeline_tag) == (
        "en",
        "apache-2.0",
        "text-generation",
    )
    assert data.datasets == ["user/text"] and data.base_model == "user/base"
    assert "tiny" in data.tags and data.model_name == "a name"
    assert [file.name for file in tmp_path.iterdir()] == ["card.md"]
