"""How good a model is on a file: a language model on a text, a classifier on labelled sentences."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_relopt.errors import ConfigError, FormatError, one_line
from hf_relopt.hf.card_loading import task_of

# Of a text: enough for two or three digits of its perplexity.
WINDOWS, TOKENS = 64, 512
# More than these windows have: not all of a long text is looked at.
_CHARACTERS = 32 * WINDOWS * TOKENS
_BATCH = 16
SUPPORTED = (
    "--data takes a text for a causal language model, or a .tsv with columns sentence and label "
    "for a model that classifies sequences"
)


class Quality(Protocol):
    """What is measured of a model, twice: before and after."""

    @property
    def metric(self) -> str:
        """What it is called."""

    @property
    def on(self) -> str:
        """What it is measured on, in words."""

    def of(self, model: nn.Module) -> float:
        """The value of a model."""


@dataclass(frozen=True)
class Perplexity:
    """Of tokens, each given those before it in its window.

    Attributes:
        windows: int64 [tokens] each.
    """

    windows: tuple[Tensor, ...]
    metric: str = "perplexity"

    @property
    def on(self) -> str:
        """What it is measured on, in words."""
        return f"{len(self.windows):,} windows of {max(map(len, self.windows)):,} tokens"

    @torch.no_grad()
    def of(self, model: Any) -> float:
        """The exponential of the mean loss over all tokens but the first of each window."""
        loss = count = 0.0
        for window in self.windows:
            logits = model(input_ids=window.unsqueeze(0)).logits[0, :-1].float()
            loss += float(nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
            count += len(window) - 1
        mean = loss / count
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class Accuracy:
    """The share of sentences that have their label.

    Attributes:
        batches: inputs of the model.
        labels: int64 [sentences] each.
    """

    batches: tuple[dict[str, Tensor], ...]
    labels: tuple[Tensor, ...]
    metric: str = "accuracy"

    @property
    def on(self) -> str:
        """What it is measured on, in words."""
        return f"{sum(map(len, self.labels)):,} sentences"

    @torch.no_grad()
    def of(self, model: Any) -> float:
        """The accuracy."""
        right = 0
        for inputs, labels in zip(self.batches, self.labels, strict=True):
            right += int((model(**inputs).logits.argmax(-1) == labels).sum())
        return right / sum(map(len, self.labels))


def quality_on(file: Path, kind: str, config: Any, tokenizer: Any) -> Quality:
    """What to measure on a file.

    Args:
        kind: the model's class.
        config: its configuration.
        tokenizer: its tokenizer, or None if there is none.

    Raises:
        ConfigError: the model has no task that this knows, or the file has too little in it.
        FormatError: the file cannot be read.
    """
    task = task_of({"class": kind})
    name = task.name if task else None
    if name not in ("text-generation", "text-classification"):
        raise ConfigError(f"{SUPPORTED}; this is a {kind}. Leave --data out.")
    if tokenizer is None:
        raise ConfigError("--data needs a tokenizer, and there is none beside the model.")
    read = _perplexity if name == "text-generation" else _accuracy
    try:
        return read(file, config, tokenizer)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"--data {file} cannot be read: {one_line(error)}.") from error


def measured(quality: Quality, model: nn.Module, file: Path) -> float:
    """The value of a model on a file.

    Raises:
        FormatError: the model does not run on it.
    """
    try:
        return quality.of(model)
    except Exception as error:  # as of tokens that the model has no embeddings for
        raise FormatError(
            f"The model does not run on --data {file}: {one_line(error)}. Check that the tokenizer "
            "is the model's own, or leave --data out."
        ) from error


def _perplexity(file: Path, config: Any, tokenizer: Any) -> Perplexity:
    with file.open(encoding="utf-8") as opened:
        text = opened.read(_CHARACTERS)
    # verbose: that the text is longer than the model's windows is no news.
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    windows = [part for part in ids.split(_length(config))[:WINDOWS] if len(part) > 1]
    if not windows:
        raise ConfigError(f"--data {file} has no two tokens. Pass a longer text.")
    return Perplexity(tuple(windows))


def _accuracy(file: Path, config: Any, tokenizer: Any) -> Accuracy:
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ConfigError(
            f"--data measures accuracy, and this model has {config.num_labels} label(s) of "
            f"{config.problem_type or 'a regression'}. Leave it out."
        )
    sentences, labels = _rows(file, config)
    length = min(_length(config), int(tokenizer.model_max_length))
    padded = tokenizer.pad_token is not None and config.pad_token_id is not None
    step = _BATCH if padded else 1
    batches = []
    for begin in range(0, len(sentences), step):
        part = sentences[begin : begin + step]
        inputs = tokenizer(
            part, return_tensors="pt", padding=padded, truncation=True, max_length=length
        )
        batches.append(dict(inputs))
    return Accuracy(tuple(batches), torch.tensor(labels).split(step))


def _rows(file: Path, config: Any) -> tuple[list[str], list[int]]:
    """Sentences and the numbers of their labels."""
    # As GLUE writes them: a quotation mark is a character like others.
    text = file.read_text(encoding="utf-8-sig")
    read = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    if not {"sentence", "label"} <= set(read.fieldnames or ()):
        raise ConfigError(f"{SUPPORTED}; the first line of {file} does not name these columns.")
    # A row that is too short has None there.
    rows = [(row["sentence"] or "", (row["label"] or "").strip()) for row in read]
    if not rows:
        raise ConfigError(f"--data {file} has no row below its head. Pass some sentences.")
    said = {label for _, label in rows}
    names = {str(name): int(number) for number, name in (config.id2label or {}).items()}
    numbers = {str(number): number for number in range(config.num_labels)}
    # All of one kind, since a model's names may be numbers, too: "1" for the label 0.
    known = names if said <= names.keys() else numbers
    if unknown := sorted(said - known.keys()):
        raise ConfigError(
            f"--data {file} has the label {unknown[0]!r}; this model has 0 to "
            f"{config.num_labels - 1}, or their names {', '.join(list(names)[:12])}."
        )
    return [sentence for sentence, _ in rows], [known[label] for _, label in rows]


def _length(config: Any) -> int:
    """Tokens that the model is run on at once."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(most, TOKENS) if isinstance(most, int) and most > 1 else TOKENS
