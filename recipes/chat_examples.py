"""Conversations, prompts with answers, or plain texts: from the hub or from local files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict
from text_tables import check_is_text_file, load_hub_splits, read_table

from hf_relopt.errors import ConfigError

DEFAULT_DATASET = "trl-lib/Capybara"
# What TRL's SFTTrainer knows, in the order in which it is looked for.
FORMS = (("messages",), ("prompt", "completion"), ("text",))


@dataclass(frozen=True)
class ChatSource:
    """Where the examples come from. With nothing given: conversations from the hub."""

    _argument_group_name = f"Examples (default: {DEFAULT_DATASET} from the hub)"

    dataset_name: str | None = field(default=None, metadata={"help": "a data set on the hub"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "its configuration"})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "a table (.jsonl, .json, .csv, .parquet) with the columns messages, or "
            "prompt and completion, or text"
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "the same, to validate on (default: a part is split off)"}
    )
    validation_share: float = field(
        default=0.02, metadata={"help": "share split off where there is no validation data"}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on this many examples at most"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "validate on this many examples at most"}
    )

    def __post_init__(self) -> None:
        if self.dataset_name and (self.train_file or self.validation_file):
            raise ConfigError("give either --dataset_name or --train_file, not both.")
        if self.validation_file and not self.train_file:
            raise ConfigError("--validation_file needs a --train_file to train on.")
        if not 0 < self.validation_share < 1:
            raise ConfigError(
                f"validation_share is {self.validation_share}; it must lie between 0 and 1, as in "
                "0.02."
            )

    @property
    def hub_names(self) -> tuple[str, str | None] | None:
        """The data set's name and configuration on the hub, if it comes from there."""
        if self.train_file:
            return None
        return self.dataset_name or DEFAULT_DATASET, self.dataset_config_name

    @property
    def words(self) -> str:
        """This source in a few words."""
        return " ".join(filter(None, self.hub_names or (Path(self.train_file or "").name,)))


def load_examples(source: ChatSource, seed: int) -> DatasetDict:
    """Read "train" and "validation", with the columns of one of FORMS.

    Raises:
        ConfigError: a missing or empty file, or none of the forms.
    """
    if source.hub_names:
        tables = load_hub_splits(*source.hub_names)
    else:
        tables = DatasetDict(train=_local(source.train_file))
        if source.validation_file:
            tables["validation"] = _local(source.validation_file)
    if "validation" not in tables:
        if len(tables["train"]) < 2:
            raise ConfigError(f"{source.words} has one example; one is needed to validate on.")
        share = max(1, round(len(tables["train"]) * source.validation_share))
        parts = tables["train"].train_test_split(share, seed=seed)
        tables = DatasetDict(train=parts["train"], validation=parts["test"])
    form = form_of(tables["train"], source.words)
    missing = set(form) - set(tables["validation"].column_names)
    if missing:
        raise ConfigError(f"the validation data of {source.words} has no column {missing.pop()!r}.")
    return DatasetDict({name: table.select_columns(form) for name, table in tables.items()})


def form_of(table: Dataset, words: str) -> list[str]:
    """The columns to train on."""
    for form in FORMS:
        if set(form) <= set(table.column_names):
            return list(form)
    raise ConfigError(
        f"{words} has the columns {', '.join(table.column_names)}; it takes messages (lists of "
        "role and content), or prompt and completion, or text. Rename a column."
    )


def _local(name: str | None) -> Dataset:
    path = Path(name or "")
    check_is_text_file(path)
    return read_table(path)
