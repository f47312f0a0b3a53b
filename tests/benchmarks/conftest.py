"""Scripts of benchmarks/ and a tiny BERT for them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from tests.benchmarks.scripts import WORDS

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a script of benchmarks/ the way `python benchmarks/NAME.py` finds it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()

    def find(name: str) -> ModuleType:
        return __import__(name)

    yield find
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    """A BERT of two layers, saved with a tokenizer of a few words."""
    folder = tmp_path / "bert"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: n for n, word in enumerate(vocabulary)}).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder
