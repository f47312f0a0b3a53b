"""Tokens that are added to a trained model: are they learnt in fine-tuning?

A GPT-2 (4 layers, width 128, context 64, no dropout) is trained on the characters of a text by
AdamW 3e-3, 600 steps of 12 x 64. Then `resize_token_embeddings` adds five tokens, whose rows are
made from the mean of the others, and the five most frequent pairs of letters become these tokens;
STEPS steps of 12 x 64 with linear decay, gradients clipped to 1.0, no weight decay. Measured on the
last tenth of the text, where a new token comes next and where another does; chance is 4.25.

    python benchmarks/new_tokens.py --train_file tinyshakespeare.txt \\
        --optim fromage_spectral --optim adamw:lr=1e-3

An optimizer without lr runs at its default rate. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import torch
from optimizer_spec import OptimizerSpec, build_optimizer, optimizer_spec, rate_in_use
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

PAIRS = ("th", "ou", "an", "in", "er")
CONTEXT, BATCH, FIRST_STEPS = 64, 12, 600


def codes(text: str) -> tuple[Tensor, Tensor, int]:
    """The text as characters, the same with PAIRS as further tokens, and how many characters."""
    number = {letter: place for place, letter in enumerate(sorted(set(text)))}
    size, joined = len(number), text
    for place, pair in enumerate(PAIRS):
        mark = chr(0xE000 + place)
        joined, number[mark] = joined.replace(pair, mark), size + place
    first, second = (torch.tensor([number[mark] for mark in part]) for part in (text, joined))
    return first, second, size


def batch(data: Tensor, generator: torch.Generator, first: float, last: float) -> Tensor:
    """[12, 65] from between these shares of the text."""
    begin, end = int(len(data) * first), int(len(data) * last) - CONTEXT - 1
    places = torch.randint(begin, end, (BATCH, 1), generator=generator)
    return data[places + torch.arange(CONTEXT + 1)]


def train(model: nn.Module, optimizer: Any, data: Tensor, steps: int, seed: int) -> None:
    """Linear decay to 0."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        losses(model, batch(data, generator, 0.0, 0.9)).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Of each token that comes next."""
    logits = model(ids[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def measure(model: nn.Module, data: Tensor, size: int) -> dict[str, float]:
    """Mean loss where a new token comes next, and elsewhere."""
    generator = torch.Generator().manual_seed(7)
    parts = [batch(data, generator, 0.9, 1.0) for _ in range(25)]
    found = torch.cat([losses(model, part) for part in parts])
    new = torch.cat([part[:, 1:].flatten() for part in parts]) >= size
    return {"new": round(found[new].mean().item(), 3), "old": round(found[~new].mean().item(), 3)}


def run(spec: OptimizerSpec, tied: bool, text: str, steps: int, seed: int) -> dict[str, Any]:
    """Fine-tune once; losses before and after."""
    _, joined, size = codes(text)
    model = trained(text, tied)
    set_seed(seed)
    model.resize_token_embeddings(size + len(PAIRS))
    before = measure(model, joined, size)
    optimizer = build_optimizer(spec, model, weight_decay=0.0)
    lr = rate_in_use(spec, optimizer)
    train(model, optimizer, joined, steps, seed)
    after = measure(model, joined, size)
    return {"lr": lr, "before": before, "after": after}


def trained(text: str, tied: bool) -> Any:
    """A new copy of the trained model."""
    model = _untrained(text, tied)
    model.load_state_dict(_weights(text, tied))
    return model


@cache
def _weights(text: str, tied: bool) -> dict[str, Tensor]:
    model = _untrained(text, tied)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99))
    train(model, optimizer, codes(text)[0], FIRST_STEPS, seed=0)
    return model.state_dict()


def _untrained(text: str, tied: bool) -> Any:
    set_seed(0)
    size = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": tied}
    return GPT2LMHeadModel(GPT2Config(vocab_size=codes(text)[2], **size, **off, **ends))


def main() -> None:
    """Do the missing runs of the command line and write the table of all runs of this length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train_file", type=Path, required=True, help="any text")
    parser.add_argument("--optim", type=optimizer_spec, action="append", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--steps", type=int, default=400, help="default: 400")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS / f"new_tokens_cpu_{MONTH}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text, log = args.train_file.read_text(encoding="utf-8"), RunLog(args.out.with_suffix(".jsonl"))
    for tied in (True, False):
        for seed in args.seeds:
            for spec in args.optim:
                key = {"optim": str(spec), "tied": tied, "seed": seed, "steps": args.steps}
                if log.finished(key) is None:
                    log.append(key, run(spec, tied, text, args.steps, seed))
                print(key, log.finished(key), flush=True)
    records = [record for record in log.records() if record["key"]["steps"] == args.steps]
    table = _table(records)
    print(table)
    setting = (__doc__ or "").split("\n\n")[1].strip().replace("\n", " ")
    setting = setting.replace("STEPS", f"{args.steps:,}")
    title, wheres = "Tokens added to a trained model", [record["where"] for record in records]
    write_report(args.out.with_suffix(".md"), title, setting, table, "Not read yet.", wheres)


def _table(records: list[dict[str, Any]]) -> str:
    rows = []
    for record in records:
        key, before, after = record["key"], record["before"], record["after"]
        rows.append(
            [
                f"`{key['optim']}`",
                f"{record['lr']:g}",
                "tied" if key["tied"] else "not tied",
                key["seed"],
                f"{before['new']:.2f} to {after['new']:.2f}",
                f"{before['old']:.2f} to {after['old']:.2f}",
            ]
        )
    return markdown_table(
        ["optimizer", "lr", "embeddings", "seed", "loss, new token next", "loss, another next"],
        sorted(rows, key=lambda row: (row[2], row[0])),
    )


if __name__ == "__main__":
    main()
