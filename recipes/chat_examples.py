"""Conversations, prompts with answers, or plain texts: from the hub or from local files."""

from __future__ import annotations

from chat_arguments import ChatSource
from datasets import Dataset, DatasetDict
from text_tables import load_tables

from hf_relopt.errors import ConfigError

# What TRL's SFTTrainer knows, in the order in which it is looked for.
FORMS = (("messages",), ("prompt", "completion"), ("text",))


def load_examples(source: ChatSource, seed: int) -> DatasetDict:
    """Read "train" and "validation", with the columns of one of FORMS.

    Raises:
        ConfigError: a missing or empty file, or none of the forms.
    """
    tables = load_tables(source, seed)
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
        f"{words} has the columns {', '.join(table.column_names)}; it needs messages (lists of "
        "role and content), or prompt and completion, or text. Rename a column."
    )
