"""Fine-tuning a classifier: texts with a class each, a pretrained model with a new task head.

The texts come from the hub or from local tables, with labels as numbers or words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from command_line import check_optimizer
from datasets import ClassLabel, Dataset, DatasetDict, Value
from model_loading import (
    CLASSIFIER,
    in_codes,
    named_model,
    padding_tokenizer,
    require_one_batch,
    require_vocabulary,
)
from recipe import Request
from recipe_run import Prepared, RecipeRun, say_main
from text_tables import load_tables, text_columns
from training_session import (
    load_metric,
    make_trainer,
    read_data,
    train_and_finish,
)
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from typed_command import OWN_SCRIPT, Rates, next_steps

from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from finetune_classifier import ClassifierModel, LabelledSource

    ClassifierRequest = Request[ClassifierModel, LabelledSource]

SHOWN_TEXTS = 4
LIMITS = "Intended for texts like those it was trained on; its errors on other texts are unknown."
# The best of those tried on SST-2 (benchmarks/results/quality_sst2_cpu_202611.md). Those of Fromage
# and the preset are what hf_relopt takes for any pretrained model.
RATES = Rates(
    {"fromage_spectral": 0.001, "adamw_torch": 2e-4, "fromage": 0.001, "madam": 0.003},
    said=("adamw_torch", "madam"),
)
# Pairs before singles: a table with "question" and "sentence" is about both.
USUAL_TEXT = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("question", "passage"), ("sentence",), ("text",), ("content",),
)  # fmt: skip
USUAL_LABELS = ("label", "labels")


def prepare(request: ClassifierRequest) -> Prepared:
    """Make texts, tokenizer and model; every mistake of the user shows up here."""
    texts = read_data(request, CLASSIFIER, load_labelled_text)
    source = request.model.model_name_or_path
    tokenizer = padding_tokenizer(request.model.tokenizer_name or source)
    model = build_classifier(request, tokenizer, class_names(texts))
    require_vocabulary(model, tokenizer, source)
    check_optimizer(request.args, model)
    splits = encode(texts, tokenizer, request.data.max_length)
    require_one_batch(model, DataCollatorWithPadding(tokenizer), splits["train"], source)
    return splits, tokenizer, model


def build_classifier(
    request: ClassifierRequest, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
) -> PreTrainedModel:
    """The pretrained model with a new task head, one output per class."""
    model = named_model(
        AutoModelForSequenceClassification,
        request.model.model_name_or_path,
        request.args.seed,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return in_codes(model, request.model)


def class_names(splits: DatasetDict) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    return splits["train"].features["labels"].names


def train(request: ClassifierRequest, run: RecipeRun) -> None:
    """Train, measure and write everything into the run folder."""
    args = request.args
    splits, tokenizer, model = run.prepare(lambda: prepare(request))
    names = class_names(splits)
    model = model or build_classifier(request, tokenizer, names)
    say_main(
        args,
        f"{request.model.model_name_or_path}: {model.num_parameters():,} parameters, "
        f"{len(names)} classes; {len(splits['train']):,} texts to train on, "
        f"{len(splits['validation']):,} to validate on",
    )
    trainer = make_trainer(
        run,
        model,
        splits,
        tokenizer,
        unit="texts",
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy_of(load_metric("accuracy_and_f1", args)),
    )
    table = ["--train_file", "mine.csv", "--text_column", "TEXT"]
    train_and_finish(
        trainer,
        run,
        sample=lambda: some_answers(trainer, tokenizer, names),
        summary=f"{request.model.model_name_or_path} fine-tuned to classify texts of "
        f"{request.data.words}.",
        tasks="text-classification",
        limits=LIMITS,
        hints=[*next_steps(args, RATES, "your own table", table), OWN_SCRIPT],
    )


def accuracy_of(metric: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's compute_metrics: accuracy and F1 of the likeliest class."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        return metric.compute(
            predictions=np.argmax(logits, axis=-1), references=prediction.label_ids
        )

    return compute


@torch.no_grad()
def some_answers(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, names: list[str]) -> str:
    """The first validation texts with the model's answer and the true one."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    rows = trainer.eval_dataset.select(range(min(SHOWN_TEXTS, len(trainer.eval_dataset))))
    batch = trainer.data_collator([dict(row) for row in rows]).to(model.device)
    truth = batch.pop("labels").tolist()
    answers = model(**batch).logits.argmax(-1).tolist()
    return "\n".join(
        f"{names[answer]} (truth: {names[label]}): "
        f"{tokenizer.decode(row['input_ids'], skip_special_tokens=True)}"
        for answer, label, row in zip(answers, truth, rows, strict=True)
    )


def load_labelled_text(source: LabelledSource, seed: int) -> DatasetDict:
    """Read the tables, find the columns and number the classes.

    Args:
        source: where from.
        seed: of the split, where there is no validation data.

    Returns:
        "train" and "validation", with one or two text columns and "labels" (a ClassLabel).

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
    return splits


def encode(texts: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Token ids beside the labels; the texts are left out.

    Args:
        texts: of load_labelled_text.
        tokenizer: of the model.
        max_length: tokens of a text (or pair) at most; the rest is cut off.
    """

    names = [name for name in texts["train"].column_names if name != "labels"]

    def encoded(batch: dict[str, list[Any]]) -> dict[str, Any]:
        columns = [[text or "" for text in batch[name]] for name in names]
        return {**tokenizer(*columns, truncation=True, max_length=max_length)}

    return texts.map(encoded, batched=True, remove_columns=names)


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
