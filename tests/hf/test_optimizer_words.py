"""The optimizer that ran in the words of a model card."""

from __future__ import annotations

import re

import pytest
import torch
from huggingface_hub import ModelCard

from hf_relopt import Fromage
from hf_relopt.hf.model_card import write_model_card
from hf_relopt.hf.optimizer_words import rule_words
from tests.hf.card_runs import trained


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
    along = "the orthogonalized momentum", "the gradient over its running root mean square"
    for words in (
        "arxiv.org/abs/2002.03432",
        *along,
        "p_bound 4.0 and 1.0",
        "momentum 0.9",
        "beta 0.95",
    ):
        assert words in line, line
    for words in (
        "None",
        "iterations",
        "in_backward",
        "split",
        "scale tensor",
        "direction",
        "nesterov",
    ):
        assert words not in line, line
    table = text.split("## What each weight follows")[1]
    for row in ("embedding | fromage, rms, by row | 0.1",
                "matrix | fromage, spectral, 3 blocks | 0.04",
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
    assert "norms kept (AdamH, a hyperball optimizer: [Wen" in line


@pytest.mark.parametrize(("optim", "name"), [("muonh", "MuonH"), ("adamh", "AdamH")])
def test_hyperball_optimizers_have_their_names_and_the_matrices_options(optim, name, tmp_path):
    text = write_model_card(trained(tmp_path, optim=optim)).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| optimizer |")]
    for words in (f"norms kept ({name}, a hyperball", "2606.16899", "bound sphere", "adamw"):
        assert words in line, line
    for words in ("betas", "p_bound", "lr_factor"):
        assert words not in line, line
    table = text.split("## What each weight follows")[1]
    assert "| embedding | adamw | 0.003 |" in table and "| vector | adamw | 0.001 |" in table


def test_the_options_are_those_of_the_first_rule_however_its_weights_are_grouped():
    embedding = torch.nn.Parameter(torch.ones(16, 8))
    matrices = [torch.nn.Parameter(torch.ones(8, 8)) for _ in range(3)]
    groups = [{"params": [each], "momentum": 0.9} for each in matrices]
    groups.append({"params": [embedding], "rule": "adamw"})
    words = rule_words(Fromage(groups, 0.01, direction="momentum", bound="sphere"))
    assert "momentum 0.9" in words[0] and "bound sphere" in words[0] and words[1:] == ["adamw"]
    assert "betas" not in words[0]
    assert "norms kept" not in words[0], "it has no name"


def test_other_optimizers_are_described_by_their_class(tmp_path):
    text = write_model_card(trained(tmp_path, optim="adamw_torch")).read_text()
    assert "AdamW (" in text and "betas (0.9, 0.999)" in text
    assert "fromage" not in text
