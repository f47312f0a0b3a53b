"""Train a small GPT-2 on the characters of one text file with several optimizers.

The setting is nanoGPT's for a CPU: GPT2LMHeadModel with 4 layers, 4 heads, width 128, context 64,
no dropout, tied embeddings, the library's own initialisation; 2,000 steps of 12 x 64 characters;
gradients clipped to norm 1.0 for everyone; the first 90 % of the file trains, the last 10 %
validates on 60 batches of 32 x 64. Fromage and Madam decay linearly to 0; AdamW and SGD warm up
for 100 steps and follow a cosine to a tenth, betas (.9, .99), weight decay .1.

    python benchmarks/shakespeare.py --train_file tinyshakespeare.txt \\
        --optim fromage:lr=.01 --optim adamw:lr=3e-3 --optim madam:lr=.03,p_scale=5 --seeds 0 1

Finished runs are not repeated: kill it and start it again, or start two with other optimizers.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path
from typing import Any

from gpt2_text import Size, characters, text_task
from optimizer_spec import NAMES, OptimizerSpec, optimizer_spec
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from torch import set_num_threads
from training import Task, curve, train

TABLE = {  # methods.md §5, one seed, prototypes
    "fromage:lr=0.01": 2.236,
    "fromage:lr=0.03": 2.105,
    "adamw:lr=0.003": 1.764,
    "madam:lr=0.01,p_scale=3.0": 2.046,
    "madam:lr=0.03,p_scale=3.0": 1.830,
    "madam:lr=0.03,p_scale=5.0": 1.789,
    "madam:lr=0.05,p_scale=5.0": 1.749,
}


def main() -> None:
    """Read the command line, do the missing runs, write table and plot."""
    args = _arguments().parse_args()
    set_num_threads(args.threads)
    log = RunLog(args.out.with_suffix(".jsonl"))
    text = args.train_file.read_text(encoding="utf-8")
    task = text_task(Size(), characters(text), args.batches)
    for seed in args.seeds:
        for spec in args.optim:
            key = {"optim": str(spec), "seed": seed, "steps": args.steps, "batches": args.batches}
            if log.finished(key):
                print(f"{spec} seed {seed}: done already", flush=True)
                continue
            log.append(key, run(spec, seed, task, args.steps))
    _report(args, log)


def run(spec: OptimizerSpec, seed: int, task: Task, steps: int) -> dict[str, Any]:
    """Train once; return the validation loss, the training curve and the CPU seconds."""
    done = train(spec, task, steps, seed)
    return {
        **done.figures,
        "seconds": done.seconds,
        "options": done.options[0],
        "curve": curve(done.losses),
    }


def _report(args: argparse.Namespace, log: RunLog) -> None:
    """Write the table (every run of this length in the file) and the plot."""
    records = [record for record in log.records() if record["key"]["steps"] == args.steps]
    by_optim: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_optim.setdefault(record["key"]["optim"], []).append(record)
    rows = []
    for name, runs in sorted(by_optim.items()):
        losses = [record["validation_loss"] for record in runs]
        spread = f"{min(losses):.3f} to {max(losses):.3f}" if len(losses) > 1 else ""
        seconds = statistics.median(record["seconds"] for record in runs)
        # The prototypes had no min_scale; it is no part of the row's name.
        row = re.sub(",min_scale=[^,]*", "", name)
        expected = f"{TABLE[row]:.3f}" if row in TABLE and args.steps == 2000 else ""
        mean = f"{statistics.mean(losses):.3f}"
        rows.append([f"`{name}`", mean, spread, len(runs), expected, f"{seconds:.0f}"])
    header = ["optimizer", "validation loss", "range", "seeds", "prototype", "CPU s"]
    table = markdown_table(header, rows)
    print(table)
    setting = (__doc__ or "").split("\n\n")[1].strip().replace("\n", " ")
    setting = setting.replace("2,000 steps", f"{args.steps:,} steps")
    setting += f"\n\n![training loss]({args.out.with_suffix('.png').name})"
    wheres = [record["where"] for record in records]
    title = f"Characters of {args.train_file.name}: validation loss"
    write_report(args.out.with_suffix(".md"), title, setting, table, "Not read yet.", wheres)
    _plot(args.out.with_suffix(".png"), by_optim, args.steps)


def _plot(path: Path, by_optim: dict[str, list[dict[str, Any]]], steps: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, runs in sorted(by_optim.items()):
        curve = runs[0]["curve"]
        places = [(place + 0.5) * steps / len(curve) for place in range(len(curve))]
        axes.plot(places, curve, label=f"{name} (seed {runs[0]['key']['seed']})", linewidth=1)
    axes.set(xlabel="step", ylabel="training loss, nats per character")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train_file", type=Path, required=True, help="a UTF-8 text file")
    parser.add_argument(
        "--optim",
        type=optimizer_spec,
        action="append",
        required=True,
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"{', '.join(NAMES)}, with options; may be given several times",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--steps", type=int, default=2000, help="default: 2000")
    parser.add_argument(
        "--batches", type=int, default=60, help="validation batches of 32 (default: 60)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"shakespeare_cpu_{MONTH}",
        help="results without suffix: .jsonl, .md and .png are written",
    )
    return parser


if __name__ == "__main__":
    main()
