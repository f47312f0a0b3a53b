"""The recipes are scripts: their folder goes on the path, as it does when one is run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A recipe loads these inside its main: loggers would keep the stderr of the test that comes first.
import datasets  # noqa: F401
import pytest
import transformers  # noqa: F401

import hf_relopt.hf.log  # noqa: F401

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """A text file of 400 lines with some regularity to learn."""
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    words = ("one", "two", "three", "small", "grey", "cat", "sees", "a", "bird")
    lines = (" ".join(words[(row * k) % 9] for k in range(1, 8)) for row in range(400))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory) -> Path:
    """A table of 64 short texts with the classes "bad" and "good"."""
    path = tmp_path_factory.mktemp("table") / "reviews.tsv"
    rows = [
        f"{'fine' if row % 2 else 'dull'} film number {row}\t{'good' if row % 2 else 'bad'}"
        for row in range(64)
    ]
    path.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory, tiny_table) -> Path:
    """A saved BERT of one layer with its tokenizer, as a stand-in for a pretrained model."""
    import torch
    from causal_text import learn_tokenizer
    from datasets import Dataset
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    texts = Dataset.from_dict({"text": tiny_table.read_text().splitlines()})
    tokenizer = learn_tokenizer(texts, 300)
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(
        BertConfig(vocab_size=len(tokenizer), intermediate_size=32, pad_token_id=0, **shape)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_text) -> Path:
    """The folder of an unbroken pretraining of 12 steps with a checkpoint after every third."""
    import pretrain_clm

    from tests.recipes.recipe_calls import tiny_pretraining

    folder = tmp_path_factory.mktemp("runs") / "whole"
    pretrain_clm.main(tiny_pretraining(tiny_text, folder, max_steps=12, eval_steps=6, save_steps=3))
    return folder
