"""Tables of text: local files and hub data sets, every column as it stands."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clear_messages import blamed_on
from datasets import Dataset, DatasetDict, Value, load_dataset, logging
from local_files import TABLE_KINDS, check_table
from recipe import TableSource

from hf_relopt.errors import ConfigError


def read_table(path: Path) -> Dataset:
    """A local JSON, CSV, TSV or Parquet file as a data set, every column as it stands.

    Raises:
        ConfigError: a file that is missing, empty, or not what its name says.
    """
    check_table(path)
    kind = TABLE_KINDS[path.suffix.lower()]
    # pandas would take words like "null" and "NA" for missing text.
    options: dict[str, Any] = {"keep_default_na": False} if kind == "csv" else {}
    if path.suffix.lower() == ".tsv":
        options.update(sep="\t", quoting=csv.QUOTE_NONE)
    # It logs what it raises as well.
    with blamed_on(f"cannot read {path}", "Does its content match its name?"), _silent():
        try:
            return load_dataset(kind, data_files=str(path), split="train", **options)
        except ValueError as error:
            if "corresponds to no data" in str(error):
                raise ConfigError(f"{path} has no rows.") from None
            raise


@contextmanager
def _silent() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_hub_splits(name: str, config: str | None) -> DatasetDict:
    """The splits of a hub (or local) data set, with "train" and, if any, "validation"."""
    with blamed_on(
        f"cannot load the data set {name}",
        "Check --dataset_name and --dataset_config_name, and whether the hub can be reached.",
    ):
        found = load_dataset(name, config)
    if not isinstance(found, DatasetDict) or "train" not in found:
        raise ConfigError(f"the data set {name} has no split train; it has {', '.join(found)}.")
    others = [split for split in found if split.startswith(("validation", "dev", "test"))]
    others.sort(key=lambda split: split.startswith("test"))  # a stable sort: test comes last
    chosen = {"validation": found[others[0]]} if others else {}
    return DatasetDict(train=found["train"], **chosen)


def load_tables(
    source: TableSource, seed: int, read: Callable[[Path], Dataset] = read_table
) -> DatasetDict:
    """Read the splits "train" and "validation".

    Args:
        seed: of the split, where there is no validation data.
        read: reads a local file.

    Raises:
        ConfigError: a missing or empty file, a data set that cannot be loaded, a single row.
    """
    if source.hub_names:
        tables = load_hub_splits(*source.hub_names)
    else:
        tables = DatasetDict(train=read(Path(source.train_file or "")))
        if source.validation_file:
            tables["validation"] = read(Path(source.validation_file))
    if "validation" in tables:
        return tables
    if len(tables["train"]) < 2:
        raise ConfigError(f"{source.words} has only one row; validation needs a second one.")
    parts = tables["train"].train_test_split(
        max(1, round(len(tables["train"]) * source.validation_share)), seed=seed
    )
    return DatasetDict(train=parts["train"], validation=parts["test"])


def text_columns(table: Dataset) -> list[str]:
    """Names of the columns that hold text."""
    return [name for name, kind in table.features.items() if _is_text(kind)]


def _is_text(kind: object) -> bool:
    return isinstance(kind, Value) and kind.dtype in ("string", "large_string")


def limit(splits: DatasetDict, most_train: int | None, most_eval: int | None) -> None:
    """Keep at most so many rows of "train" and "validation", evenly spaced over each."""
    for name, most in (("train", most_train), ("validation", most_eval)):
        split = splits[name]
        if most is not None and most < len(split):
            splits[name] = split.select([row * len(split) // most for row in range(most)])
