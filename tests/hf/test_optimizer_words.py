"""The optimizer that ran in the words of a model card."""

from __future__ import annotations

import re

from huggingface_hub import ModelCard

from hf_relopt.hf.model_card import write_model_card
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
    for words in ("arxiv.org/abs/2002.03432", *along, "p_bound 4.0", "momentum 0.9"):
        assert words in line, line
    for words in ("None", "beta", "split", "scale tensor", "direction", "nesterov"):
        assert words not in line, line
    table = text.split("## What each weight follows")[1]
    for row in ("embedding | fromage, rms, by row | 0.15",
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
