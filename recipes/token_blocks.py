"""Documents become blocks of token ids of one length, and blocks become batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Value
from datasets import List as ListOf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_relopt.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"
LEARN_FROM = 3_000_000  # characters are plenty for a few thousand merges, and take seconds


def learn_tokenizer(documents: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the documents.

    Args:
        documents: with a column "text"; evenly spaced ones are read, up to 3 million characters.
        vocab_size: entries in all; at least 257 (every byte, and the end of a text).

    Raises:
        ConfigError: if vocab_size is too small.
    """
    if vocab_size < 257:
        raise ConfigError(
            f"vocab_size is {vocab_size}; it must be 257 or more: 256 bytes and one end token."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(documents), trainer)
    # No pad token, as with GPT-2: nothing is padded here, and as the end token it would make models
    # warn of missing attention masks.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _sample(documents: Dataset) -> Iterator[str]:
    characters = sum(map(len, documents["text"]))
    stride = max(1, -(-characters // LEARN_FROM))
    for start in range(0, len(documents), stride):
        yield documents[start]["text"]


def make_blocks(
    documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> DatasetDict:
    """All documents in a row, each followed by the end token, split into blocks.

    Args:
        documents: splits with the columns "text" and "ends".
        tokenizer: any; one without an end token puts nothing between documents.
        block_size: tokens per block, at least 2. A rest shorter than a block is dropped.

    Returns:
        The same splits with one column "input_ids".

    Raises:
        ConfigError: if a split does not fill a single block.
    """
    if block_size < 2:
        raise ConfigError(f"block_size is {block_size}; a block needs 2 tokens or more, as in 128.")
    features = Features({"input_ids": ListOf(Value("int32"))})
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def blocks_of(batch: dict[str, list[Any]]) -> dict[str, list[np.ndarray]]:
        ids = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        rows = [row + end if ends else row for row, ends in zip(ids, batch["ends"], strict=True)]
        flat = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
        whole = len(flat) // block_size * block_size
        return {"input_ids": list(flat[:whole].reshape(-1, block_size))}

    result = DatasetDict()
    for name, split in documents.items():
        columns = split.column_names
        result[name] = split.map(
            blocks_of, batched=True, batch_size=1000, remove_columns=columns, features=features
        )
        if not len(result[name]):
            raise ConfigError(
                f"the {name} text does not fill one block of {block_size} tokens. Give more text "
                "or a smaller --block_size."
            )
    return result


def collate_blocks(blocks: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch for a causal language model: every token but the first is also a label."""
    input_ids = torch.tensor(np.array([block["input_ids"] for block in blocks]), dtype=torch.long)
    labels = input_ids.clone()
    # Nothing comes before the first token. Trainer divides by the number of labels, and some of its
    # versions would count this one, so that the loss came out too low.
    labels[:, 0] = -100
    return {"input_ids": input_ids, "labels": labels}
