"""Tiny models with tokenizers in folders, and files to measure them on."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tests.hf.tiny import VOCABULARY, gpt2

LABELS = {0: "bad", 1: "good", 2: "mixed"}


def words() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are w0, w1, ..., with the number as their token."""
    model = Tokenizer(WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="w0", unk_token="w0")


def language_model(folder: Path) -> Path:
    gpt2().save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


def classifier(folder: Path) -> Path:
    torch.manual_seed(1)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = BertConfig(
        **size, num_attention_heads=2, vocab_size=VOCABULARY, max_position_embeddings=12,
        id2label=LABELS,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        # So that the three labels all occur.
        model.bert.embeddings.word_embeddings.weight.mul_(40)
        model.bert.pooler.dense.weight.mul_(20)
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


def text(file: Path, tokens: int) -> Path:
    file.write_text(" ".join(f"w{7 * n % VOCABULARY}" for n in range(tokens)))
    return file


def sentences(file: Path, count: int = 21, *, named: bool = False) -> Path:
    """Of one to four words, with a quotation mark that nobody closes, and a column too much."""
    rows = ["index\tsentence\tlabel"]
    for n in range(count):
        label = LABELS[n % 3] if named else n % 3
        words = " ".join(f"w{(2 * k + 1) * n % VOCABULARY}" for k in range(1 + n % 4))
        rows.append(f'{n}\t{words} "\t{label}')
    file.write_text("\n".join(rows) + "\n")
    return file


def nothing_new(place: Path, before: set[str]) -> bool:
    """Whether a folder holds what it held, and no unfinished folder either."""
    return {each.name for each in place.iterdir()} == before
