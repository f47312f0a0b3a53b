"""Text to learn from, from its source to batches: documents, blocks of tokens, tensors.

The source is the standard library, local files, or a hub data set. Each becomes two `datasets`
splits with the columns "text" and "ends" (whether the document ends here; long files are split at
line ends), and then blocks of token ids of one length.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Value
from datasets import List as ListOf
from local_files import TABLE_KINDS, check_text, text_files
from text_tables import load_hub_splits, read_table, text_columns
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from pretrain_clm import TextSource

# Not written to be read (tables, generated files), not the library's own, or tests of it.
LEFT_OUT = {
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test",
    "encodings", "pydoc_data", "lib2to3",
}  # fmt: skip
PIECE = 1 << 14  # characters; long enough that cuts do not matter, short enough for the tokenizer
DOCUMENTS = Features({"text": Value("string"), "ends": Value("bool")})
END_OF_TEXT = "<|endoftext|>"
LEARN_FROM = 3_000_000  # characters are plenty for a few thousand merges, and take seconds


def load_documents(source: TextSource) -> DatasetDict:
    """Read the text into the splits "train" and "validation".

    Raises:
        ConfigError: a file that is missing or empty, a data set without the text column, a hub
            data set that cannot be loaded.
    """
    if source.is_standard_library:
        root, files = standard_library_files()
        splits = _split_by_file(root, files, source.validation_share)
    elif source.dataset_name:
        splits = _from_hub(source)
    else:
        splits = _from_files(source)
    for name, split in splits.items():
        if not any(text.strip() for text in split["text"]):
            raise ConfigError(
                f"there is no text in the {name} split of {source.words}. Give more text."
            )
    return splits


def standard_library_files() -> tuple[Path, list[Path]]:
    """Where the standard library is, and its source files, in a fixed order.

    Raises:
        ConfigError: if this Python has no source text (a zipped or stripped installation).
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in folder.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(folder).parts[:-1])
        and not path.name.startswith("_sysconfigdata")
        and path.stat().st_size > 0
    ]
    if len(files) < 100:
        raise ConfigError(
            f"this Python has no source text of its standard library in {folder} ({len(files)} "
            "files). Pass a text with --train_file or --dataset_name."
        )
    return folder, sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def goes_to_validation(name: str, share: float) -> bool:
    """Whether the file of this name is for validation: decided by its name alone, anywhere."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < share * 2**32


def _split_by_file(root: Path, files: list[Path], share: float) -> DatasetDict:
    held_out = {
        path for path in files if goes_to_validation(path.relative_to(root).as_posix(), share)
    }
    return DatasetDict(
        train=_read_texts([path for path in files if path not in held_out]),
        validation=_read_texts([path for path in files if path in held_out]),
    )


def _read_texts(files: list[Path]) -> Dataset:
    pieces = [piece for path in files for piece in _pieces(path)]
    return Dataset.from_dict(
        {"text": [text for text, _ in pieces], "ends": [ends for _, ends in pieces]},
        features=DOCUMENTS,
    )


def _pieces(path: Path) -> Iterator[tuple[str, bool]]:
    """One file, split at line ends into texts of about PIECE characters."""
    check_text(path)
    held: list[str] = []
    size = 0
    with path.open(encoding="utf-8", errors="replace", newline="") as lines:
        for line in lines:
            if size >= PIECE:
                yield "".join(held), False
                held, size = [], 0
            held.append(line)
            size += len(line)
    if held:
        yield "".join(held), True


def _from_files(source: TextSource) -> DatasetDict:
    train_path = Path(source.train_file or "")
    if source.validation_file:
        return DatasetDict(
            train=_read_any(train_path, source.text_column),
            validation=_read_any(Path(source.validation_file), source.text_column),
        )
    if train_path.is_dir():
        files = text_files(train_path)
        if len(files) >= 2 / source.validation_share:
            return _split_by_file(train_path, files, source.validation_share)
    return _split_off_the_end(_read_any(train_path, source.text_column), source.validation_share)


def _read_any(path: Path, text_column: str | None) -> Dataset:
    if path.is_dir():
        return _read_texts(text_files(path))
    if path.suffix.lower() in TABLE_KINDS:
        return _only_text(read_table(path), text_column, str(path))
    return _read_texts([path])


def _from_hub(source: TextSource) -> DatasetDict:
    found = load_hub_splits(source.dataset_name or "", source.dataset_config_name)
    column, place = source.text_column, source.words
    train = _only_text(found["train"], column, place)
    if "validation" not in found:
        return _split_off_the_end(train, source.validation_share)
    return DatasetDict(train=train, validation=_only_text(found["validation"], column, place))


def _only_text(table: Dataset, column: str | None, place: str) -> Dataset:
    names = text_columns(table)
    if column is None:
        named = "text" in table.column_names
        column = "text" if named else names[0] if len(names) == 1 else None
    if column in table.column_names and column not in names:
        kind = table.features[column]
        raise ConfigError(
            f"the column {column!r} of {place} holds {getattr(kind, 'dtype', kind)}, not text. "
            "Pass the one that holds text as --text_column."
        )
    if column not in names:
        missing = f"no text column {column!r}" if column else "no column 'text'"
        raise ConfigError(
            f"{place} has {missing}; its columns are {', '.join(table.column_names)}. Pass the "
            "one that holds text as --text_column."
        )
    table = table.select_columns(column)
    if column != "text":
        table = table.rename_column(column, "text")
    table = table.filter(lambda text: bool(text), input_columns="text")
    return table.add_column("ends", [True] * len(table)).cast(DOCUMENTS)


def _split_off_the_end(documents: Dataset, share: float) -> DatasetDict:
    held_out = max(1, round(len(documents) * share))
    border = len(documents) - held_out
    if border < 1:
        # One piece only: cut it, so that even a short text has something to validate on.
        return _cut_one_text(documents[0]["text"], share)
    return DatasetDict(
        train=documents.select(range(border)),
        validation=documents.select(range(border, len(documents))),
    )


def _cut_one_text(text: str, share: float) -> DatasetDict:
    border = int(len(text) * (1 - share))
    first, second = (
        Dataset.from_dict({"text": [part], "ends": [True]}, features=DOCUMENTS)
        for part in (text[:border], text[border:])
    )
    return DatasetDict(train=first, validation=second)


def learn_tokenizer(documents: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the documents.

    Args:
        documents: with a column "text"; evenly spaced ones are read, up to 3 million characters.
        vocab_size: entries in all; at least 257 (every byte, and the end of a text).
    """
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
