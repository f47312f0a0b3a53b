"""Text to learn from, as documents: the standard library, local files, or a hub data set.

Every source becomes two `datasets` splits with the columns "text" and "ends" (whether the document
ends here; long files are split at line ends).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Value
from local_files import TABLE_KINDS, check_text, text_files
from pretrain_arguments import TextSource
from standard_library import standard_library_files
from text_tables import load_hub_splits, read_table, text_columns

from hf_relopt.errors import ConfigError

PIECE = 1 << 14  # characters; long enough that cuts do not matter, short enough for the tokenizer
DOCUMENTS = Features({"text": Value("string"), "ends": Value("bool")})


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
