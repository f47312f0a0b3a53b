"""Tables of text: local files and hub data sets, every column as it stands."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Value, load_dataset
from one_clear_message import blamed_on

from hf_relopt.errors import ConfigError

TABLE_KINDS = {
    ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip


def check_is_text_file(path: Path) -> None:
    """Raise a ConfigError if there is no readable file with something in it."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}.")
    try:
        with path.open("rb") as file:
            empty = not file.read(1 << 16).strip()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error
    if empty:
        raise ConfigError(f"{path} is empty.")


def read_table(path: Path) -> Dataset:
    """A local JSON, CSV, TSV or Parquet file as a data set, every column as it stands."""
    kind = TABLE_KINDS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path} must be a table: {', '.join(TABLE_KINDS)}.")
    # pandas would take words like "null" and "NA" for missing text.
    options: dict[str, Any] = {"keep_default_na": False} if kind == "csv" else {}
    if path.suffix.lower() == ".tsv":
        options.update(sep="\t", quoting=csv.QUOTE_NONE)
    with blamed_on(f"cannot read {path}", "Is it what its name says it is?"):
        return load_dataset(kind, data_files=str(path), split="train", **options)


def load_hub_splits(name: str, config: str | None) -> DatasetDict:
    """The splits of a hub (or local) data set, with "train" and, if any, "validation"."""
    with blamed_on(
        f"cannot load the data set {name}",
        "Check --dataset_name and --dataset_config_name, and whether the hub can be reached.",
    ):
        found = load_dataset(name, config)
    if "train" not in found:
        raise ConfigError(f"the data set {name} has no split train; it has {', '.join(found)}.")
    others = [split for split in found if split.startswith(("validation", "dev", "test"))]
    others.sort(key=lambda split: split.startswith("test"))  # a stable sort: test comes last
    chosen = {"validation": found[others[0]]} if others else {}
    return DatasetDict(train=found["train"], **chosen)


def text_columns(table: Dataset) -> list[str]:
    """Names of the columns that hold text."""
    return [name for name, kind in table.features.items() if _is_text(kind)]


def _is_text(kind: object) -> bool:
    return isinstance(kind, Value) and kind.dtype in ("string", "large_string")
