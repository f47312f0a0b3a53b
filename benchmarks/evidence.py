"""The papers' experiments, beside what a user would pick instead.

    depth      perceptrons of 1 to 50 hidden layers: which optimizer trains how deep a network?
    pictures   a ResNet and a vision transformer: accuracy, and the loss on held-out pictures
    gan        a class-conditional GAN: two networks that train against each other
    words      the papers' word-level transformer
    squad      question answering, fine-tuned
    sizes      a GPT-2 of several depths and widths: how far does the best learning rate move?

Every optimizer gets the same number of learning rates, spaced alike around the one that is
recommended for it. So each experiment answers two questions: which is best, and what does it cost
not to tune?

    python benchmarks/evidence.py --size quick --jobs 2             # all of it, in 20 minutes
    python benchmarks/evidence.py --experiment depth --jobs 2
    python benchmarks/evidence.py --experiment words --data words=wikitext2-test.txt \\
        --valid_text wikitext2-valid.txt
    python benchmarks/evidence.py --experiment pictures --size full --device cuda \\
        --data pictures=uoft-cs/cifar10
    python benchmarks/evidence.py --experiment depth --optim lion --optim lamb
    python benchmarks/evidence.py --experiment depth --setting 20 30 --steps 6000 --optim fromage
    python benchmarks/evidence.py --experiment words --powers -3 -2 -1 0 1 2 --seeds 0 1
    python benchmarks/evidence.py --experiment depth gan --report_only

Finished runs are not repeated: kill it and start it again. A run that diverged is a result like any
other. Tables and pictures are written at the end, from all runs of these sizes in the files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from evidence_depth import DEPTH
from evidence_experiment import (
    PASSES,
    RECOMMENDED,
    Cell,
    Experiment,
    Options,
    run_or_refusal,
    without_rate,
)
from evidence_gan import GAN
from evidence_images import PICTURES
from evidence_squad import SQUAD
from evidence_table import draw, tables
from evidence_text import RATES, TEXT
from optimizer_spec import OURS, optimizer_spec
from parallel_runs import run_all
from run_log import MONTH, RESULTS, RunLog, write_report

EXPERIMENTS: dict[str, Experiment] = {
    "depth": DEPTH,
    "pictures": PICTURES,
    "gan": GAN,
    "words": TEXT,
    "squad": SQUAD,
    "sizes": RATES,
}


RIVALS = (*OURS, *RECOMMENDED)


def main() -> None:
    """Do the missing runs of the command line; write tables and pictures."""
    args = _read_command_line()
    # Before a log notes how many there are.
    torch.set_num_threads(args.threads)
    for name in args.experiment:
        options = _options(name, args)
        log = RunLog(_file(name, options, args.out))
        experiment = _asked(EXPERIMENTS[name], args)
        if not args.report_only:
            _run_missing(name, experiment, options, args, log)
        _report(name, experiment, options, log)


def _asked(experiment: Experiment, args: argparse.Namespace) -> Experiment:
    """An experiment with the command line's settings, length and learning rates."""
    settings = {args.size: args.setting or experiment.settings[args.size]}
    steps = {args.size: args.steps or experiment.steps[args.size]}
    powers = {args.size: args.powers} if args.powers else experiment.powers
    return dataclasses.replace(experiment, settings=settings, steps=steps, powers=powers)


def _file(name: str, options: Options, folder: Path) -> Path:
    """Where runs of an experiment are: the newest such file, or one of this month."""
    stem = f"evidence_{name}_{'full_' * (options.size == 'full')}{options.device}_"
    there = sorted(folder.glob(f"{stem}[0-9]*.jsonl"))
    return there[-1] if there else folder / f"{stem}{MONTH}.jsonl"


def _run_missing(
    name: str, experiment: Experiment, options: Options, args: argparse.Namespace, log: RunLog
) -> None:
    source = _source_key(options)
    cells = experiment.cells(args.size, args.seeds, args.optim)
    done = {str(record["key"]) for record in log.records()}
    missing = [cell for cell in cells if str(_key(name, cell, source)) not in done]
    print(f"{name}: {len(missing)} of {len(cells)} runs are left", flush=True)
    start = time.monotonic()
    runs = run_all(partial(run, name, options=options), missing, args.jobs, args.threads)
    for number, (cell, figures) in enumerate(runs, start=1):
        log.append(_key(name, cell, source), figures)
        left = (time.monotonic() - start) / number * (len(missing) - number) / 60
        print(
            f"{name} {number} of {len(missing)}: {cell.setting} {cell.optim} seed {cell.seed}: "
            f"{_said(figures, experiment)}; about {left:.0f} min left",
            flush=True,
        )


def run(name: str, cell: Cell, options: Options) -> dict[str, Any]:
    """One run's figures. Lines on its way are shown of the long runs alone."""
    shown = sys.stdout if options.size == "full" else io.StringIO()
    with contextlib.redirect_stdout(shown):
        return run_or_refusal(EXPERIMENTS[name], cell, options)


def _said(figures: dict[str, Any], experiment: Experiment) -> str:
    if "refused" in figures:
        return f"refused: {figures['refused']}"
    if figures["diverged_at"] is not None:
        return f"diverged at step {figures['diverged_at']}"
    shown = figures[experiment.measure]
    return f"{experiment.measure} {shown:.{experiment.digits}f} ({figures['seconds']:.0f} s)"


def _key(name: str, cell: Cell, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "experiment": name,
        **source,
        "setting": cell.setting,
        "steps": cell.steps,
        "optim": cell.optim,
        "seed": cell.seed,
    }


def _source_key(options: Options) -> dict[str, Any]:
    """What is trained on, and at which scale; a file by its name and what is in it."""
    found = {"scale": "full" if options.size == "full" else "small"}
    found["data"] = _named(options.data)
    if options.valid_file is not None:
        found["valid"] = _named(str(options.valid_file))
    return found


def _named(source: str) -> str:
    path = Path(source).expanduser()
    if path.is_file():
        return f"{path.name} ({zlib.crc32(path.read_bytes()):08x})"
    return path.name if path.is_dir() or path.is_absolute() else source


def _options(name: str, args: argparse.Namespace) -> Options:
    experiment = EXPERIMENTS[name]
    own = experiment.full_data if args.size == "full" else ""
    data = args.data.get(name, own or experiment.data)
    return Options(args.size, data, args.valid_text if name == "words" else None, args.device)


def _report(name: str, experiment: Experiment, options: Options, log: RunLog) -> None:
    """Write the page and the picture of all runs of this length and scale on this data."""
    wanted = {**_source_key(options), "steps": experiment.steps[options.size]}
    records = [record for record in log.records() if wanted.items() <= record["key"].items()]
    if not records:
        print(f"{log.path.name} has no finished run of {name} with {wanted}")
        return
    shown = tables(records, experiment)
    print(shown)
    stem = log.path.stem
    usual = EXPERIMENTS[name].steps["full" if options.size == "full" else "here"]
    if wanted["steps"] != usual:
        stem += f"_{wanted['steps']}_steps"
    page, picture = (log.path.with_name(stem + end) for end in (".md", ".png"))
    draw(picture, records, experiment)
    data = " and ".join(str(wanted[name]) for name in ("data", "valid") if name in wanted)
    setting = f"{experiment.about} Data: {data}; {wanted['steps']:,} steps.\n\n{_CAPTION}"
    setting += f"\n\n![{experiment.title}]({picture.name})"
    wheres = [record["where"] for record in records]
    write_report(page, experiment.title, setting, shown, "Not read yet.", wheres)


_CAPTION = (
    "In a pass every optimizer has the same number of learning rates; (edge): the best is the "
    "lowest or highest; ±: half of how far seeds are apart. What diverged or was refused has no "
    "number. In the picture a ring is at the recommended rate."
)


def _read_command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--experiment", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS),
        help="default: all",
    )  # fmt: skip
    parser.add_argument(
        "--size", choices=PASSES, default="here",
        help="quick: 20 minutes for all; here: hours on a CPU; full: the papers' sizes, for a GPU "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=_source, action="append", metavar="EXPERIMENT=SOURCE",
        help="what an experiment reads: digits, python, a path or a hub name; of pictures on disk "
        "the first 10,000, a fifth of them to measure on; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--valid_text",
        type=Path,
        help="for words: a file to measure on (default: the last tenth of the text)",
    )
    parser.add_argument(
        "--optim", type=_rival, action="append", metavar="NAME[:OPTION=VALUE,...]",
        help=f"in place of the pass's optimizers, without a rate: {', '.join(RIVALS)}",
    )  # fmt: skip
    parser.add_argument(
        "--setting", nargs="+",
        help="for one experiment: these in place of the pass's, as hidden layers or LAYERSxWIDTH",
    )  # fmt: skip
    parser.add_argument(
        "--powers", nargs="+", type=float, metavar="P",
        help="learning rates in place of the pass's: the recommended one times 10^P",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, help="length of a run, in place of the pass's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run (default: 1)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--report_only", action="store_true", help="write the pages again")
    parser.add_argument(
        "--out", type=Path, default=RESULTS,
        help="folder of the results: evidence_*.jsonl, .md and .png (default: benchmarks/results)",
    )  # fmt: skip
    args = parser.parse_args()
    args.data = dict(args.data or ())
    args.optim = args.optim or []
    if args.setting and len(args.experiment) > 1:
        parser.error("--setting is for one experiment: name it with --experiment")
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps}: give 1 or more")
    if args.jobs < 1 or args.threads < 1:
        parser.error("--jobs and --threads are 1 at least")
    if args.device == "cuda" and not torch.cuda.is_available() and not args.report_only:
        parser.error("--device cuda needs a CUDA device, and torch sees none")
    if args.valid_text is not None and not args.valid_text.is_file():
        parser.error(f"--valid_text {args.valid_text}: no such file")
    return args


def _source(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if name not in EXPERIMENTS or not (equals and source):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no EXPERIMENT=SOURCE with one of {', '.join(EXPERIMENTS)}"
        )
    return name, source


def _rival(text: str) -> str:
    spec = optimizer_spec(text)
    if spec.lr is not None:
        raise argparse.ArgumentTypeError(f"{text!r} has a rate: rates follow from --size")
    if spec.name not in RIVALS:
        raise argparse.ArgumentTypeError(
            f"{spec.name} has no recommended rate; use one of {RIVALS}"
        )
    return without_rate(text)


if __name__ == "__main__":
    main()
