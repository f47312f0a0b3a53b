"""The demo with several optimizers: the record that its closing lines quote.

Each run is `python recipes/pretrain_clm.py` without arguments but the optimizer, its learning rate
and warm-up, and a seed: a GPT-2 from scratch on the source text of Python's standard library,
linear decay, no weight decay. What is not given is the recipe's own.

    python benchmarks/demo.py --optim fromage_spectral --optim adamw_torch:2e-3:0.1 --optim fromage

What stands behind a second colon is the share of the steps in which the learning rate rises.

Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report

SCRIPT = Path(__file__).resolve().parents[1] / "recipes" / "pretrain_clm.py"
TITLE = "The demo: a GPT-2 from scratch on Python's standard library"


def main() -> None:
    """Train what is missing, and write the page."""
    args = _arguments().parse_args()
    log = RunLog(args.out.with_suffix(".jsonl"))
    for seed in args.seeds:
        for optim in args.optim:
            name, rate, warmup = (*optim.split(":"), "", "")[:3]
            key = {"optim": name, "lr": float(rate) if rate else None, "seed": seed}
            key |= {"warmup": float(warmup) if warmup else None, "flags": args.flags}
            said = ["--learning_rate", rate] if rate else []
            said += ["--warmup_steps", warmup] if warmup else []
            if log.finished(key) is None:
                log.append(key, train(name, seed, args.threads, [*said, *args.flags]))
    write_page(args.out, log.records())


def train(name: str, seed: int, threads: int, flags: list[str]) -> dict[str, Any]:
    """One run of the recipe in a process of its own; its metrics and settings."""
    words = ["--optim", name, "--seed", str(seed), *flags]
    print("pretrain_clm.py", *words, flush=True)
    with TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        subprocess.run(
            [sys.executable, str(SCRIPT), *words, "--output_dir", str(place)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            check=True,
        )
        record = json.loads((place / "run.json").read_text("utf-8"))
        used = json.loads((place / "trainer_state.json").read_text("utf-8"))["log_history"]
    return {
        "peak_lr": max(entry["learning_rate"] for entry in used if "learning_rate" in entry),
        "perplexity": record["after"]["eval_perplexity"],
        "loss": record["after"]["eval_loss"],
        "perplexity_before": record["before"]["eval_perplexity"],
        "steps": record["steps"],
        "seconds": record["seconds"],
        "sequences": record["sequences"],
        "settings": record["recipe"],
        "sample": record["sample"],
    }


def write_page(out: Path, records: list[dict[str, Any]]) -> None:
    """The table of all runs, a row for each optimizer and learning rate."""
    groups: dict[tuple[str, float, float], list[dict[str, Any]]] = {}
    for record in records:
        warmup = record["settings"]["warmup_steps"]
        rate = record["settings"]["learning_rate"] or record["peak_lr"]
        groups.setdefault((record["key"]["optim"], rate, warmup), []).append(record)
    rows = []
    for (name, rate, warmup), runs in sorted(groups.items()):
        both = [run["perplexity"] for run in sorted(runs, key=lambda run: run["key"]["seed"])]
        given = runs[0]["key"]["lr"] is not None
        rows.append(
            [
                f"`{name}`",
                f"{rate:g}" + ("" if given else " (the recipe's)"),
                f"{warmup:.0%}" if warmup else "",
                f"{mean(both):.1f}",
                ", ".join(f"{one:.1f}" for one in both),
                f"{mean(run['loss'] for run in runs):.3f}",
                f"{mean(run['seconds'] for run in runs):.0f}",
            ]
        )
    header = ["optimizer", "peak lr", "warm-up", "perplexity", "by seed", "validation loss", "s"]
    table = markdown_table(header, rows)
    print(table)
    settings = records[0]["settings"]
    setting = " ".join((__doc__ or "").split("\n\n")[1].split()) + (
        f" {records[0]['steps']:,} steps of {settings['sequences_per_step']} sequences of "
        f"{settings['block_size'] or 128} tokens; a tokenizer of {settings['vocab_size']:,} BPE "
        f"tokens; {records[0]['sequences']:,} sequences to train on (the library of Python "
        f"{records[0]['where']['versions']['python']}); perplexity on the validation part, "
        f"{records[0]['perplexity_before']:,.0f} before training. Seeds "
        f"{', '.join(map(str, sorted({r['key']['seed'] for r in records})))}."
    )
    wheres = [record["where"] for record in records]
    write_report(out.with_suffix(".md"), TITLE, setting, table, "Not read yet.", wheres)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--optim",
        action="append",
        required=True,
        metavar="NAME[:LR[:WARMUP]]",
        help="a name for the recipe's --optim, and more of it; several times",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43], help="default: 42 43")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"demo_cpu_{MONTH}",
        help="results without suffix: .jsonl and .md are written",
    )
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="further flags of the recipe"
    )
    return parser


if __name__ == "__main__":
    main()
