"""`hf-relopt compare`: several runs on one page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hf_relopt.cli.report import DONE, USAGE, say_written
from hf_relopt.errors import RelOptError


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_A RUN_B ...", show_default=False, help="Two runs or more."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path(
        "compare.html"
    ),
) -> None:
    """Make one HTML page that compares runs: settings that differ, curves, results.

    Each run is the output_dir of a Trainer. A run's name on the page is that of its folder; runs
    are told apart by colour and by line style. What a run did not log is missing for that run
    alone, and the page says so.

    \b
    Examples:
      hf-relopt compare runs/demo runs/demo-adamw
      hf-relopt compare runs/lr-* --out learning_rates.html

    \b
    The exit code is 0, or 2 where a folder holds no run or the page cannot be written.
    """  # noqa: D301  click looks for the character itself, which a raw string does not hold
    raise typer.Exit(run_compare(runs, out=out))


def run_compare(paths: Sequence[Path], *, out: Path = Path("compare.html")) -> int:
    """Write the page and say where it is; arguments are the command's options.

    Returns:
        0, or 2 after one message on stderr.
    """
    from hf_relopt.report.compare_page import compare_page
    from hf_relopt.report.comparison import check_paths, names_of
    from hf_relopt.report.page import check_place, write_page
    from hf_relopt.report.run_files import read_run

    try:
        check_paths(paths)
        check_place(out)
        runs = [read_run(path) for path in paths]
        write_page(compare_page(runs), out)
    except RelOptError as error:
        print(f"hf-relopt compare: {error}", file=sys.stderr)
        return USAGE
    say_written([out])
    for run, name in zip(runs, names_of(paths), strict=True):
        for fault in run.faults:
            print(f"  {name}: {fault}")
    return DONE
