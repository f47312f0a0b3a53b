"""Where data comes from: the hub, local files, or the recipe's default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from local_files import check_table

from hf_relopt.errors import ConfigError


@dataclass(frozen=True)
class DataSource:
    """A data set on the hub, or files; a share is split off if there is no validation data."""

    # Name and configuration on the hub of what is taken if nothing is named.
    default_dataset: ClassVar[tuple[str, str | None] | None] = None

    dataset_name: str | None = field(default=None, metadata={"help": "a data set on the hub"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "its configuration"})
    train_file: str | None = field(default=None, metadata={"help": "a local file"})
    validation_file: str | None = field(
        default=None,
        metadata={"help": "a local file of validation data (default: a share is split off)"},
    )
    validation_share: float = field(
        default=0.05, metadata={"help": "share split off where there is no validation data"}
    )

    def __post_init__(self) -> None:
        if self.dataset_name and (self.train_file or self.validation_file):
            raise ConfigError("give either --dataset_name or --train_file, not both.")
        if self.validation_file and not self.train_file:
            raise ConfigError("--validation_file needs --train_file.")
        if self.train_file == "" or self.dataset_name == "":
            raise ConfigError("--train_file and --dataset_name must not be empty.")
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

    def look(self) -> None:
        """Find what is wrong with files as far as their names and beginnings tell it.

        Raises:
            ConfigError: a file that is missing, empty or not what its name says.
        """
        for name in filter(None, (self.train_file, self.validation_file)):
            self.look_at(Path(name))
        if self.dataset_name and looks_local(self.dataset_name):
            check_is_folder(self.dataset_name, "data set")

    def look_at(self, path: Path) -> None:
        """Find what is wrong with one file."""
        check_table(path, whole=False)


@dataclass(frozen=True)
class TableSource(DataSource):
    """Data in rows, of which only so many may be used."""

    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on this many rows at most"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "validate on this many rows at most"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits(self.max_train_samples, self.max_eval_samples)


def check_limits(*limits: int | None) -> None:
    """Raise a ConfigError unless each number of samples that is given is 1 or more."""
    for most in limits:
        if most is not None and most < 1:
            raise ConfigError(
                f"max_train_samples and max_eval_samples must be 1 or more, not {most}."
            )


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: names on the hub have one slash, and not in front."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1


def check_is_folder(name: str, what: str) -> None:
    """Raise a ConfigError unless a path that was given for a model or a data set is a folder."""
    try:
        if Path(name).is_dir():
            return
        there = "is a file" if Path(name).exists() else "there is no such folder"
    except (OSError, ValueError) as error:
        there = getattr(error, "strerror", None) or str(error)
    raise ConfigError(
        f"cannot load the {what} {name}: {there}. Name a folder, or a {what} on the hub as in "
        "OWNER/NAME."
    )
