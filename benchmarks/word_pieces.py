"""Two texts as word pieces: a byte-pair encoding learnt from the first, applied to both."""

from __future__ import annotations

import torch
from gpt2_text import Codes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096


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


def _encode(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    lines = tokenizer.encode_batch(text.splitlines(keepends=True))
    return torch.tensor([piece for line in lines for piece in line.ids])
