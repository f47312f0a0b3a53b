"""Walk small networks along their negative gradient, and draw what changes against how far it went.

    python recipes/curvature.py
    python recipes/curvature.py --depths 4 8 32 --seeds 0
    python recipes/curvature.py --data ylecun/mnist --side 14 --output_dir runs/curvature-mnist

This is the picture with which arXiv 2002.03432 motivates deep relative trust. docs/curvature.md
reads it. There is no Trainer here: nothing but small perceptrons, for which every number is exact.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clear_messages import Stopped, one_clear_message

from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from curvature_networks import NetworkSettings
    from digit_images import Images

ABOUT = """\
Trains small networks (multilayer perceptrons of 2 and 16 layers, plain and residual) for a moment,
then walks along the negative gradient with the same relative step in every layer, and measures how
much loss, output and the gradient of each layer change, next to deep relative trust.

With the defaults it takes about a minute on a CPU. It writes into the output directory:
  cells.jsonl             one line per network, with all points of its walk
  curvature.md            the tables
  curvature-N-steps.png   the picture after N steps of training

An interrupted start resumes: give the same command again. Finished networks are not repeated, and
more of them (--depths, --seeds, ...) are added to the file."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Instead of usage and exit: one message."""
        raise ConfigError(f"{message}. `python recipes/curvature.py --help` shows all flags.")


def parser() -> argparse.ArgumentParser:
    """The flags, with their defaults."""
    found = _Parser(
        prog="curvature.py",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    networks = found.add_argument_group("Networks")
    networks.add_argument(
        "--depths",
        type=int,
        nargs="+",
        default=[2, 16],
        metavar="L",
        help="weight matrices of the networks (default: 2 16)",
    )
    networks.add_argument(
        "--kinds",
        nargs="+",
        default=["plain", "residual"],
        choices=["plain", "residual"],
        help="without or with skips (default: both)",
    )
    networks.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
        help="one network each; the picture shows the median (default: 0 1 2)",
    )
    training = found.add_argument_group("Training")
    training.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[0, 200],
        metavar="N",
        help="steps of training before the walk; 0 is the initial network (default: 0 200)",
    )
    training.add_argument(
        "--lr",
        type=float,
        default=0.01,
        metavar="X",
        help="peak learning rate of Fromage, a fraction of each weight's norm (default: 0.01)",
    )
    training.add_argument(
        "--batch", type=int, default=64, metavar="N", help="pictures per step (default: 64)"
    )
    data = found.add_argument_group("Data")
    data.add_argument(
        "--data",
        default="digits",
        metavar="SOURCE",
        help="digits (of scikit-learn, no download); a folder with MNIST's four files; a .npz or "
        ".parquet file; a hub name, as ylecun/mnist (default: digits)",
    )
    data.add_argument(
        "--side",
        type=int,
        default=8,
        metavar="N",
        help="pictures are averaged down to N x N pixels; the networks are N^2 wide (default: 8)",
    )
    walk = found.add_argument_group("Walk")
    walk.add_argument(
        "--pictures",
        type=int,
        default=512,
        metavar="N",
        help="the batch that everything is measured on (default: 512)",
    )
    walk.add_argument(
        "--per_decade",
        type=int,
        default=4,
        metavar="N",
        help="relative steps per power of ten, from 1e-4 to 1 (default: 4)",
    )
    run = found.add_argument_group("Run")
    run.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/curvature"),
        metavar="DIR",
        help="where everything is written (default: runs/curvature)",
    )
    return found  # fmt: skip


def read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of a command line, checked.

    Raises:
        ConfigError: a flag that is unknown, or out of its range.
    """
    args = parser().parse_args(argv)
    for name, least in (
        ("depths", 1), ("seeds", 0), ("steps", 0), ("batch", 1), ("side", 1), ("pictures", 1),
        ("per_decade", 1),
    ):  # fmt: skip
        value = getattr(args, name)
        wrong = [n for n in (value if isinstance(value, list) else [value]) if n < least]
        if wrong:
            raise ConfigError(f"--{name} is {wrong[0]}; it takes {least} or more.")
    if not 0 <= args.lr < 1:
        raise ConfigError(
            f"--lr is {args.lr}; Fromage takes 0 <= lr < 1, a fraction of each weight's norm. Try "
            "0.01."
        )
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ConfigError(f"--output_dir is {args.output_dir}, a file. Pass a folder.")
    return args


def all_settings(args: argparse.Namespace) -> list[NetworkSettings]:
    """The networks that were asked for, each once; the quick ones first."""
    from curvature_networks import NetworkSettings

    chosen = itertools.product(
        *(dict.fromkeys(each) for each in (args.seeds, args.steps, args.depths, args.kinds))
    )
    return [
        NetworkSettings(
            depth=depth,
            residual=kind == "residual",
            steps=steps,
            lr=args.lr,
            batch=args.batch,
            seed=seed,
        )
        for seed, steps, depth, kind in chosen
    ]


def measure(
    args: argparse.Namespace, images: Images, log: Any, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the cells that are missing; return the records of all that were asked for.

    Args:
        args: of read_flags.
        images: the data.
        log: a CellLog, or what can do the same.
        say: shows a line.
    """
    from curvature_walk import cell_key, measured_cell, relative_steps

    wanted = [
        (each, cell_key(each, images, args.pictures, args.per_decade))
        for each in all_settings(args)
    ]
    missing = [(each, key) for each, key in wanted if log.finished(key) is None]
    if len(missing) < len(wanted):
        say(f"{len(wanted) - len(missing)} of {len(wanted)} networks are finished already")
    steps, begin = relative_steps(args.per_decade), time.monotonic()
    for number, (settings, key) in enumerate(missing, start=1):
        cell = measured_cell(settings, images, args.pictures, steps)
        log.append(key, cell)
        left = (time.monotonic() - begin) / number * (len(missing) - number)
        rest = f"; about {math.ceil(left)} s left" if number < len(missing) else ""
        result = cell.get("fault") or f"loss {cell['loss']:.3g}, {len(steps)} relative steps"
        say(f"network {number} of {len(missing)}: {settings.words}: {result}{rest}")
    return [record for _, key in wanted if (record := log.finished(key)) is not None]


def report(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write tables and pictures; returns their files."""
    from curvature_report import draw, markdown, networks

    page = folder / "curvature.md"
    page.write_text(markdown(records) + "\n", "utf-8")
    lengths = sorted({network.steps for network in networks(records)})
    return [page, *(draw(folder / f"curvature-{n}-steps.png", records, n) for n in lengths)]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, measure what is missing, write tables and pictures."""
    with one_clear_message() as outcome:
        args = read_flags(argv)
        _say("loading torch ...")
        import torch
        from curvature_log import CellLog
        from digit_images import read_images

        # These matrices are too small to be shared among cores.
        torch.set_num_threads(1)
        images = read_images(args.data, args.side)
        log = CellLog(args.output_dir / "cells.jsonl")
        outcome.signals.at_once = False
        try:
            records = measure(args, images, log, _say)
            files = report(records, args.output_dir)
        except Stopped as stopped:
            stopped.standing = (
                f"stopped; {len(log.records())} finished networks are in {log.path}, and the same "
                "command measures the rest"
            )
            raise
        print(files[0].read_text("utf-8"))
        _say("wrote " + ", ".join(map(str, [log.path, *files])))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
