"""Fine-tune a pretrained model to answer questions about a text, with fromage_spectral.

Without arguments: bert-base-cased on SQuAD 1.1, both from the hub, with the batches, epochs and
schedule of the Fromage paper: 12 windows, 2 epochs, linear decay. Local models and files work as
well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recipe import DEFAULTS, PretrainedSource, Recipe, TableSource, option, pretrained

from hf_relopt.errors import ConfigError


@dataclass(frozen=True)
class AnswererModel(PretrainedSource):
    """Which pretrained model learns to answer."""

    model_name_or_path: str = pretrained("google-bert/bert-base-cased")


@dataclass(frozen=True)
class QuestionSource(TableSource):
    """Where questions come from. Default: SQuAD 1.1 from the hub."""

    _argument_group_name = "Questions (default: rajpurkar/squad from the hub)"
    default_dataset: ClassVar[tuple[str, str | None] | None] = ("rajpurkar/squad", None)

    train_file: str | None = option(
        None, "SQuAD's .json, or a table with context, question and answers"
    )
    max_length: int = option(384, "longest input (question and window), in tokens")
    doc_stride: int = option(128, "overlap of two windows of a text, in tokens")
    max_answer_length: int = option(30, "longest answer, in tokens")

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


RECIPE = Recipe(
    about=__doc__,
    own_kinds=(AnswererModel, QuestionSource),
    defaults={
        **DEFAULTS,
        "run_name": "finetune_squad",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 12,
        "per_device_eval_batch_size": 32,
        "logging_steps": 50,
        "eval_strategy": "epoch",
        "save_steps": 1000,
        # The model's columns do not tell that these are what it is trained on.
        "label_names": ["start_positions", "end_positions"],
    },
    metric="eval_f1",
    work="squad_training",
)
main = RECIPE.start

if __name__ == "__main__":
    main()
