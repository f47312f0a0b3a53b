"""Fine-tune a pretrained model to classify texts, with fromage_spectral.

Without arguments: MiniLM on SST-2, both from the hub. Local models and tables work as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recipe import DEFAULTS, PretrainedSource, Recipe, TableSource, option, pretrained

from hf_relopt.errors import ConfigError


@dataclass(frozen=True)
class ClassifierModel(PretrainedSource):
    """Which pretrained model becomes the classifier."""

    model_name_or_path: str = pretrained("nreimers/MiniLM-L6-H384-uncased")


@dataclass(frozen=True)
class LabelledSource(TableSource):
    """Where texts and labels come from. Default: SST-2 from the hub."""

    _argument_group_name = "Labelled text (default: nyu-mll/glue sst2 from the hub)"
    default_dataset: ClassVar[tuple[str, str | None] | None] = ("nyu-mll/glue", "sst2")

    train_file: str | None = option(None, "local table: .tsv, .csv, .json, .jsonl, .parquet")
    text_column: str | None = option(None, "column of the text")
    text_pair_column: str | None = option(None, "column of a second text, for tasks about pairs")
    label_column: str | None = option(None, "column of the class, numbers or words")
    max_length: int = option(128, "longest text, in tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_pair_column and not self.text_column:
            raise ConfigError("--text_pair_column needs --text_column, for the first text.")
        if self.max_length < 3:
            raise ConfigError(f"max_length is {self.max_length}; it must be 3 or more, as in 128.")


RECIPE = Recipe(
    about=__doc__,
    own_kinds=(ClassifierModel, LabelledSource),
    defaults={
        **DEFAULTS,
        "run_name": "finetune_classifier",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "logging_steps": 20,
        "eval_steps": 200,
        "save_steps": 200,
    },
    metric="eval_accuracy",
    work="classifier_training",
)
main = RECIPE.start

if __name__ == "__main__":
    main()
