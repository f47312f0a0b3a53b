"""What a recipe's script is made of: its arguments, and the module that trains.

The scripts import nothing heavy: a mistake on the command line is reported before torch,
transformers and datasets are loaded, which takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from clear_messages import one_clear_message
from first_look import first_look
from local_files import check_is_folder, check_table, looks_local
from typed_command import expanded

from hf_relopt.cli.launch import LOOK_ONLY
from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainingArguments

# What all scripts take where the user says nothing; each has more of its own.
DEFAULTS = {
    "optim": "fromage_spectral",
    "lr_scheduler_type": "linear",
    "logging_first_step": True,
    "eval_strategy": "steps",
    "save_total_limit": 2,
}
Model = TypeVar("Model")
Data = TypeVar("Data")


def option(default: Any, words: str) -> Any:
    """A field of a dataclass of arguments.

    Args:
        default: what it is if the user does not give it.
        words: what --help says of it.
    """
    return field(default=default, metadata={"help": words})


def pretrained(default: str, what: str = "pretrained") -> Any:
    """The field of the model's name, with the model that a recipe takes if none is named."""
    return option(default, f"the {what} model, from the hub or a directory")


@dataclass(frozen=True)
class DataSource:
    """A data set on the hub, or files; a share is split off if there is no validation data."""

    # Name and configuration on the hub of what is taken if nothing is named.
    default_dataset: ClassVar[tuple[str, str | None] | None] = None

    dataset_name: str | None = option(None, "a data set on the hub")
    dataset_config_name: str | None = option(None, "its configuration")
    train_file: str | None = option(None, "a local file")
    validation_file: str | None = option(
        None, "a local file of validation data (default: a share is split off)"
    )
    validation_share: float = option(0.05, "share split off where there is no validation data")

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

    max_train_samples: int | None = option(None, "train on this many rows at most")
    max_eval_samples: int | None = option(None, "validate on this many rows at most")

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


@dataclass(frozen=True)
class ModelSource:
    """Which model is trained; a recipe sets its own default."""

    _argument_group_name = "Model"

    model_name_or_path: str | None = pretrained("")
    lns_format: str | None = option(None, "codes for integer_madam: lns8, lns10, lns12, lns16")

    def look(self) -> None:
        """Raise a ConfigError for a name that can only be a path, and is none of a folder."""
        names = {
            "model": self.model_name_or_path,
            "configuration": getattr(self, "config_name", None),
            "tokenizer": getattr(self, "tokenizer_name", None),
        }
        for what, name in names.items():
            if name == "":
                raise ConfigError(f"the name of the {what} is empty.")
            # A configuration may be a file.
            if name is not None and looks_local(name) and not name.endswith(".json"):
                check_is_folder(name, what)


@dataclass(frozen=True)
class PretrainedSource(ModelSource):
    """Which pretrained model is fine-tuned, and with which tokenizer."""

    tokenizer_name: str | None = option(None, "this tokenizer, instead of the model's")


@dataclass(frozen=True)
class RunArguments:
    """What to do with a folder that holds a run."""

    _argument_group_name = "Run"

    overwrite_output_dir: bool = option(False, "delete the run in the folder, and start over")


@dataclass(frozen=True)
class Request(Generic[Model, Data]):
    """Everything the command line asked for; a recipe may add argument dataclasses."""

    args: TrainingArguments
    run: RunArguments
    model: Model
    data: Data

    @property
    def sources(self) -> list[Any]:
        """The dataclasses that tell model and data."""
        return [getattr(self, each.name) for each in fields(self)][2:]


@dataclass(frozen=True)
class Recipe:
    """One script.

    Attributes:
        about: one paragraph for --help.
        own_kinds: the recipe's own argument dataclasses, in the order of its request's fields.
        defaults: the recipe's values of arguments that the user does not give.
        metric: the evaluation metric of the summary, as in "eval_accuracy".
        work: the module whose ``train(request, run)`` does the run.
        request: Request, or one with more fields.
        training: module and class of the training arguments.
        extras: package -> the extra of hf_relopt that installs it, from what the user asked for.
        complete: sets what depends on several arguments, from the request and the names of what
            the user gave.
    """

    about: str
    own_kinds: tuple[type, ...]
    defaults: Mapping[str, Any]
    metric: str
    work: str
    request: type = Request
    training: tuple[str, str] = ("transformers", "TrainingArguments")
    extras: Callable[[Any], Mapping[str, str]] = lambda _: {}
    complete: Callable[[Any, set[str]], None] = lambda _request, _given: None

    @property
    def kinds(self) -> tuple[type, ...]:
        """All argument dataclasses but the training arguments."""
        return (*self.own_kinds, RunArguments)

    def start(self, argv: Sequence[str] | None = None) -> None:
        """Read the arguments, train unless the run is finished, print the summary.

        Args:
            argv: the command line without the program's name; None: this process's own.

        Raises:
            SystemExit: with one line, for whatever a user can mend; see one_clear_message.
        """
        with one_clear_message() as outcome:
            words = expanded(sys.argv[1:] if argv is None else argv)
            first_look(self, words)
            if os.environ.get(LOOK_ONLY):
                return
            from recipe_run import work  # torch, transformers, datasets: seconds

            work(self, words, outcome)
