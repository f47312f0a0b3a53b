"""The arguments of `finetune_squad.py`, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from data_source import TableSource
from model_source import PretrainedSource
from recipe import RunArguments

from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainingArguments

DEFAULT_DATASET = "rajpurkar/squad"
DEFAULTS = {
    "run_name": "finetune_squad",
    "optim": "fromage_spectral",
    "lr_scheduler_type": "linear",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 12,
    "per_device_eval_batch_size": 32,
    "logging_steps": 50,
    "logging_first_step": True,
    "eval_strategy": "epoch",
    "save_steps": 1000,
    "save_total_limit": 2,
    # The model's columns do not tell that these are what it is trained on.
    "label_names": ["start_positions", "end_positions"],
}


@dataclass(frozen=True)
class AnswererArguments(PretrainedSource):
    """Which pretrained model learns to answer."""

    model_name_or_path: str = field(
        default="google-bert/bert-base-cased",
        metadata={"help": "the pretrained model, from the hub or a directory"},
    )


@dataclass(frozen=True)
class QuestionSource(TableSource):
    """Where questions come from. Default: SQuAD 1.1 from the hub."""

    _argument_group_name = f"Questions (default: {DEFAULT_DATASET} from the hub)"
    default_dataset: ClassVar[tuple[str, str | None] | None] = (DEFAULT_DATASET, None)

    train_file: str | None = field(
        default=None,
        metadata={"help": "SQuAD's .json, or a table with context, question and answers"},
    )
    max_length: int = field(
        default=384, metadata={"help": "longest input (question and window), in tokens"}
    )
    doc_stride: int = field(
        default=128, metadata={"help": "overlap of two windows of a text, in tokens"}
    )
    max_answer_length: int = field(default=30, metadata={"help": "longest answer, in tokens"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.doc_stride < self.max_length:
            raise ConfigError(
                f"doc_stride is {self.doc_stride}; it must lie between 0 and max_length, which is "
                f"{self.max_length}."
            )
        if self.max_answer_length < 1:
            raise ConfigError(
                f"max_answer_length is {self.max_answer_length}; it must be 1 or more, as in 30."
            )


@dataclass(frozen=True)
class SquadRequest:
    """Everything the command line asked for."""

    model: AnswererArguments
    data: QuestionSource
    run: RunArguments
    args: TrainingArguments
