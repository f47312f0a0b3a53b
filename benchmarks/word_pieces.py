"""Two texts as word pieces: a byte-pair encoding learnt from the first, applied to both."""

from __future__ import annotations

from pathlib import Path

import torch
from gpt2_text import Codes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

VOCABULARY = 4096
# Lines whose pieces are in memory as Python objects at once.
_LINES = 10_000


def word_pieces(train: str, valid: str, vocabulary: int = VOCABULARY) -> Codes:
    """Byte-level pieces, so that each text can be written; the encoding never sees `valid`.

    Args:
        train: the text that the encoding is learnt from.
        valid: the other text.
        vocabulary: number of pieces at most; a short text yields fewer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(train.splitlines(keepends=True), trainer)
    return Codes(_encode(tokenizer, train), _encode(tokenizer, valid), tokenizer.get_vocab_size())


def kept_word_pieces(path: Path, train: Path, valid: Path, vocabulary: int) -> Codes:
    """As above, kept in a file: for long texts it takes minutes.

    Args:
        path: read if it is there, else written.
        train, valid: files, read if that one is not there.
        vocabulary: at most 65,536.
    """
    if path.exists():
        kept = torch.load(path, weights_only=True)
        return Codes(kept["train"].int(), kept["valid"].int(), kept["vocabulary"])
    texts = (text.read_text(encoding="utf-8") for text in (train, valid))
    codes = word_pieces(*texts, vocabulary)
    small = {"train": codes.train.to(torch.uint16), "valid": codes.valid.to(torch.uint16)}
    torch.save({**small, "vocabulary": codes.vocabulary}, path)
    return codes


def _encode(tokenizer: Tokenizer, text: str) -> Tensor:
    lines = text.splitlines(keepends=True)
    parts = []
    for first in range(0, len(lines), _LINES):
        pieces = tokenizer.encode_batch(lines[first : first + _LINES])
        parts.append(
            torch.tensor([piece for line in pieces for piece in line.ids], dtype=torch.int32)
        )
    return torch.cat(parts)
