"""The card describes the optimizer and the figures of the run it was written by."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard

from hf_relopt.hf.model_card import write_model_card
from tests.hf.card_runs import trained


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
    assert {file.name for file in tmp_path.iterdir()} <= {"card.md", "relopt_loss.png"}
