"""Texts with a class each: from the hub or from local tables, with labels as numbers or words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from classifier_arguments import LabelledSource
from datasets import ClassLabel, Dataset, DatasetDict, Value
from text_tables import load_tables, text_columns
from transformers import PreTrainedTokenizerBase

from hf_relopt.errors import ConfigError

# Pairs before singles: a table with "question" and "sentence" is about both.
USUAL_TEXT = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("question", "passage"), ("sentence",), ("text",), ("content",),
)  # fmt: skip
USUAL_LABELS = ("label", "labels")


@dataclass(frozen=True)
class LabelledText:
    """Texts with classes numbered from 0.

    Args:
        splits: "train" and "validation", with the text columns and "labels" (a ClassLabel).
        text: one or two column names.
    """

    splits: DatasetDict
    text: tuple[str, ...]


def load_labelled_text(source: LabelledSource, seed: int) -> LabelledText:
    """Read the tables, find the columns and number the classes.

    Args:
        source: where from.
        seed: of the split, where there is no validation data.

    Raises:
        ConfigError: a missing or empty file, no such column, labels that are no classes.
    """
    tables = load_tables(source, seed)
    text = _text_columns(source, tables["train"])
    label = _label_column(source, tables["train"])
    for table in tables.values():
        _require_columns(table, (*text, label), source.words)
    values = _class_values(tables["train"], label)
    classes = ClassLabel(names=_class_names(tables["train"], label, values))
    splits = DatasetDict()
    for name, table in tables.items():
        numbered = _numbered(table, text, label, values, f"{name} data of {source.words}")
        splits[name] = numbered.cast_column("labels", classes)
    return LabelledText(splits, text)


def encode(texts: LabelledText, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Token ids beside the labels; the texts are left out.

    Args:
        texts: with one or two text columns.
        tokenizer: of the model.
        max_length: tokens of a text (or pair) at most; the rest is cut off.
    """

    def encoded(batch: dict[str, list[Any]]) -> dict[str, Any]:
        columns = [[text or "" for text in batch[name]] for name in texts.text]
        return {**tokenizer(*columns, truncation=True, max_length=max_length)}

    return texts.splits.map(encoded, batched=True, remove_columns=list(texts.text))


def _text_columns(source: LabelledSource, table: Dataset) -> tuple[str, ...]:
    if source.text_column:
        return tuple(filter(None, (source.text_column, source.text_pair_column)))
    there = text_columns(table)
    for usual in USUAL_TEXT:
        if set(usual) <= set(there):
            return usual
    labels = {source.label_column, *USUAL_LABELS}
    others = [name for name in there if name not in labels]
    if len(others) == 1:
        return (others[0],)
    raise ConfigError(
        f"cannot tell which column of {source.words} is the text; its columns are "
        f"{', '.join(table.column_names)}. Pass it as --text_column."
    )


def _label_column(source: LabelledSource, table: Dataset) -> str:
    if source.label_column:
        return source.label_column
    for usual in USUAL_LABELS:
        if usual in table.column_names:
            return usual
    raise ConfigError(
        f"{source.words} has no column 'label'; its columns are {', '.join(table.column_names)}. "
        "Pass the column with the classes as --label_column."
    )


def _require_columns(table: Dataset, wanted: tuple[str, ...], place: str) -> None:
    for name in wanted:
        if name not in table.column_names:
            raise ConfigError(
                f"{place} has no column {name!r}; its columns are {', '.join(table.column_names)}."
            )
    for name in wanted[:-1]:
        if name not in text_columns(table):
            raise ConfigError(f"the column {name!r} of {place} holds no text.")


def _class_values(table: Dataset, label: str) -> list[Any]:
    """What stands in the label column, in the order of the class numbers."""
    kind = table.features[label]
    if isinstance(kind, ClassLabel):
        return list(range(kind.num_classes))
    values = sorted({value for value in table.unique(label) if value is not None})
    is_class = isinstance(kind, Value) and not kind.dtype.startswith(("float", "double"))
    if not is_class:
        raise ConfigError(
            f"the label column {label!r} holds {kind.dtype if isinstance(kind, Value) else kind}; "
            "a class must be an integer or a string."
        )
    if len(values) < 2:
        raise ConfigError(f"the label column {label!r} has only one class: {values}.")
    return values


def _class_names(table: Dataset, label: str, values: list[Any]) -> list[str]:
    kind = table.features[label]
    return list(kind.names) if isinstance(kind, ClassLabel) else [str(value) for value in values]


def _numbered(
    table: Dataset, text: tuple[str, ...], label: str, values: list[Any], place: str
) -> Dataset:
    number_of = {value: number for number, value in enumerate(values)}
    unknown = sorted(set(map(str, table.unique(label))) - set(map(str, values)))
    if unknown:
        raise ConfigError(
            f"the {place} has labels that are not in the training data: {', '.join(unknown[:5])}. "
            f"The classes are {', '.join(map(str, values[:10]))}."
        )
    numbers = [number_of[value] for value in table[label]]
    return table.select_columns(list(text)).add_column("labels", numbers)
