"""`hf-relopt report`: one page of a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_relopt.cli.as_typed import from_here
from hf_relopt.errors import RelOptError

DONE, USAGE = 0, 2


def report(
    run_dir: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR", show_default=False, help="A run's output_dir."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page. Default: RUN_DIR/report.html."),
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Write the figures as PNGs, too, beside the page.")
    ] = False,
) -> None:
    """Make one HTML page of a run: loss, learning rate, relative update by layer, norms, speed.

    The page is one file that asks for nothing from elsewhere. It is made of what the folder
    holds: trainer_state.json of any Trainer (also in a checkpoint-*), and telemetry.jsonl and
    relopt_run.json, which RelOptTrainer writes. A run that still trains or was
    killed has a page, too; the page says what is missing.

    \b
    Examples:
      hf-relopt report runs/demo
      hf-relopt report runs/demo --out demo.html --png

    \b
    The exit code is 0, or 2 where there is no run in the folder or the page cannot be written.
    """  # noqa: D301  click looks for the character itself, which a raw string does not hold
    raise typer.Exit(run_report(run_dir, out=out, png=png))


def run_report(run_dir: Path, *, out: Path | None = None, png: bool = False) -> int:
    """Write the page and say where it is; arguments are the command's options.

    Returns:
        0, or 2 after one message on stderr.
    """
    from hf_relopt.report.page import check_place, write_page
    from hf_relopt.report.run_files import read_run
    from hf_relopt.report.run_page import figures, missing, run_page

    try:
        run = read_run(run_dir)
        page = out if out is not None else run_dir / "report.html"
        check_place(page)
        write_page(run_page(run), page)
        written = [page]
        if png:
            from hf_relopt.report.png import write_pngs

            written += write_pngs([each for _, part in figures(run) for each in part], page)
    except RelOptError as error:
        print(f"hf-relopt report: {error}", file=sys.stderr)
        return USAGE
    say_written(written)
    for note in [*run.faults, *missing(run)]:
        print(f"  {note}")
    return DONE


def say_written(paths: list[Path]) -> None:
    """One line for each file."""
    for path in paths:
        print(f"{from_here(os.path.abspath(path))} ({_size(path.stat().st_size)})")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} KB"
