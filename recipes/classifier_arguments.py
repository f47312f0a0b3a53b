"""The arguments of `finetune_classifier.py`, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from data_source import TableSource
from model_source import PretrainedSource
from recipe import RunArguments

from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainingArguments

DEFAULT_DATASET = ("nyu-mll/glue", "sst2")
DEFAULTS = {
    "run_name": "finetune_classifier",
    "optim": "fromage_spectral",
    "lr_scheduler_type": "linear",
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "logging_steps": 20,
    "logging_first_step": True,
    "eval_strategy": "steps",
    "eval_steps": 200,
    "save_steps": 200,
    "save_total_limit": 2,
}


@dataclass(frozen=True)
class ClassifierArguments(PretrainedSource):
    """Which pretrained model becomes the classifier."""

    model_name_or_path: str = field(
        default="nreimers/MiniLM-L6-H384-uncased",
        metadata={"help": "the pretrained model, from the hub or a directory"},
    )


@dataclass(frozen=True)
class LabelledSource(TableSource):
    """Where texts and labels come from. Default: SST-2 from the hub."""

    _argument_group_name = "Labelled text (default: nyu-mll/glue sst2 from the hub)"
    default_dataset: ClassVar[tuple[str, str | None] | None] = DEFAULT_DATASET

    train_file: str | None = field(
        default=None, metadata={"help": "local table: .tsv, .csv, .json, .jsonl, .parquet"}
    )
    text_column: str | None = field(default=None, metadata={"help": "column of the text"})
    text_pair_column: str | None = field(
        default=None, metadata={"help": "column of a second text, for tasks about pairs"}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "column of the class, numbers or words"}
    )
    max_length: int = field(default=128, metadata={"help": "longest text, in tokens"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_pair_column and not self.text_column:
            raise ConfigError("--text_pair_column needs --text_column, for the first text.")
        if self.max_length < 3:
            raise ConfigError(f"max_length is {self.max_length}; it must be 3 or more, as in 128.")


@dataclass(frozen=True)
class ClassifierRequest:
    """Everything the command line asked for."""

    model: ClassifierArguments
    data: LabelledSource
    run: RunArguments
    args: TrainingArguments
