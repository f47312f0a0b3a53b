"""Where data comes from, as the user says it: the hub, local files, or the recipe's own default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from datasets import Dataset, DatasetDict
from text_tables import check_is_text_file, load_hub_splits, read_table

from hf_relopt.errors import ConfigError


@dataclass(frozen=True)
class DataSource:
    """A data set on the hub, or files; what a part is split off from to validate on."""

    # Name and configuration on the hub of what is taken if nothing is named.
    default_dataset: ClassVar[tuple[str, str | None] | None] = None

    dataset_name: str | None = field(default=None, metadata={"help": "a data set on the hub"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "its configuration"})
    train_file: str | None = field(default=None, metadata={"help": "a local file"})
    validation_file: str | None = field(
        default=None, metadata={"help": "the same, to validate on (default: a part is split off)"}
    )
    validation_share: float = field(
        default=0.05, metadata={"help": "share split off where there is no validation data"}
    )

    def __post_init__(self) -> None:
        if self.dataset_name and (self.train_file or self.validation_file):
            raise ConfigError("give either --dataset_name or --train_file, not both.")
        if self.validation_file and not self.train_file:
            raise ConfigError("--validation_file needs a --train_file to train on.")
        if not 0 < self.validation_share < 1:
            raise ConfigError(
                f"validation_share is {self.validation_share}; it must lie between 0 and 1, as in "
                f"{type(self).validation_share}."
            )

    @property
    def hub_names(self) -> tuple[str, str | None] | None:
        """The data set's name and configuration on the hub, if it comes from there."""
        if self.train_file:
            return None
        if self.dataset_name:
            return self.dataset_name, self.dataset_config_name
        return self.default_dataset

    @property
    def words(self) -> str:
        """This source in a few words."""
        return " ".join(filter(None, self.hub_names or (Path(self.train_file or "").name,)))


@dataclass(frozen=True)
class TableSource(DataSource):
    """Data in rows, of which only so many may be used."""

    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on this many rows at most"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "validate on this many rows at most"}
    )


def read_file(path: Path) -> Dataset:
    """A local table that has something in it."""
    check_is_text_file(path)
    return read_table(path)


def load_tables(
    source: TableSource, seed: int, read: Callable[[Path], Dataset] = read_file
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
        raise ConfigError(f"{source.words} has one row; there must be one to validate on, too.")
    parts = tables["train"].train_test_split(
        max(1, round(len(tables["train"]) * source.validation_share)), seed=seed
    )
    return DatasetDict(train=parts["train"], validation=parts["test"])
