"""`hf-relopt distance A B`: how far apart two networks are, layer by layer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_relopt.errors import ConfigError, RelOptError

if TYPE_CHECKING:
    from hf_relopt.distance.compare import Progress
    from hf_relopt.distance.result import Distance

DONE, PARTIAL, USAGE, STOPPED = 0, 1, 2, 130
# Layers that a table shows unless --top says otherwise.
TOP = 30


def distance(
    before: Annotated[
        str,
        typer.Argument(
            metavar="A",
            show_default=False,
            help="The network to measure from: a folder, a safetensors or torch file, a model of "
            "the hub (NAME or NAME@REVISION).",
        ),
    ],
    after: Annotated[
        str | None,
        typer.Argument(
            metavar="B",
            show_default=False,
            help="The network to measure to, or a LoRA adapter on A. Left out, A has to be an "
            "adapter that names its base.",
        ),
    ] = None,
    norm: Annotated[
        str,
        typer.Option(
            "--norm",
            metavar="NAME",
            help="frobenius; spectral or both add operator norms and stable ranks, which takes "
            "longer.",
        ),
    ] = "frobenius",
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="FILE",
            help="Run both networks on it and show what really changed: a text (its first 32 "
            "lines), or tensors by name (.safetensors, .pt).",
        ),
    ] = None,
    gradients: Annotated[
        bool,
        typer.Option("--gradients", help="With --batch: compare the gradients of the loss, too."),
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            metavar="N",
            help=f"Show the N layers that moved most. Default: all if there are {TOP} or fewer.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object alone.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one line per layer alone.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw how far each layer moved, in network order: a .png, .svg or .pdf.",
        ),
    ] = None,
) -> None:
    """Show how far apart two networks are: layer by layer, and as deep relative trust.

    Files are read in pieces, so that two checkpoints of any size need little memory. Nothing is
    trained, and without --batch nothing is run.

    \b
    Examples:
      hf-relopt distance gpt2 runs/demo
      hf-relopt distance runs/demo/checkpoint-100 runs/demo --plot moved.png
      hf-relopt distance BASE ADAPTER --norm both
      hf-relopt distance A B --batch lines.txt --json > distance.json

    \b
    The exit code is 0; 1 if a part could not be read (the output says which); 2 for a mistake in
    the options or files; 130 if it was interrupted, after printing what was measured until then.
    """  # noqa: D301
    raise typer.Exit(
        run_distance(
            before, after, norm=norm, batch=batch, gradients=gradients, top=top, as_json=as_json,
            as_csv=as_csv, plot=plot,
        )
    )  # fmt: skip


def run_distance(
    before: str,
    after: str | None,
    *,
    norm: str = "frobenius",
    batch: str | None = None,
    gradients: bool = False,
    top: int | None = None,
    as_json: bool = False,
    as_csv: bool = False,
    plot: Path | None = None,
) -> int:
    """Print the distance; arguments are the command's options.

    Returns:
        The exit code that the command's help describes.
    """
    try:
        _look(norm, batch, gradients, as_json, as_csv, plot)
        found, code = _measure(before, after, norm, batch, gradients)
        if plot is not None:
            found.plot(plot)
    except RelOptError as error:
        print(f"hf-relopt distance: {error}", file=sys.stderr)
        return USAGE
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    elif as_csv:
        print(found.to_csv(), end="")
    else:
        print("\n".join(_report(found, top)))
    if plot is not None:
        print(f"wrote {plot}", file=sys.stderr)
    if found.partial and (as_json or as_csv):
        print(f"hf-relopt distance: partial: {found.partial}", file=sys.stderr)
    return code if code != DONE else PARTIAL if found.partial else DONE


def _look(
    norm: str, batch: str | None, gradients: bool, as_json: bool, as_csv: bool, plot: Path | None
) -> None:
    """Find what is wrong with the options before anything is read."""
    from hf_relopt.distance.compare import NORMS
    from hf_relopt.distance.figure import check_place

    if norm not in NORMS:
        raise ConfigError(f"--norm is {norm!r}; allowed are {', '.join(NORMS)}.")
    if gradients and batch is None:
        raise ConfigError("--gradients needs inputs to run on. Pass --batch FILE, too.")
    if as_json and as_csv:
        raise ConfigError("--json and --csv are both given, and each is printed alone. Pass one.")
    if plot is not None:
        check_place(plot)


def _measure(
    before: str, after: str | None, norm: str, batch: str | None, gradients: bool
) -> tuple[Distance, int]:
    from hf_relopt.distance.compare import Comparison, opened

    first, second = (None, before) if after is None else (before, after)
    comparison = Comparison(*opened(first, second), spectral=norm != "frobenius")
    measured = _run_both(first, second, batch, gradients) if batch is not None else None
    with _progress() as progress:
        try:
            comparison.run(progress)
        except KeyboardInterrupt:
            return comparison.result(measured, partial="interrupted"), STOPPED
    return comparison.result(measured), DONE


def _run_both(first: str | None, second: str, batch: str, gradients: bool) -> Any:
    from hf_relopt.distance.adapters import config_in
    from hf_relopt.distance.calibration import measured_on
    from hf_relopt.distance.files import locate
    from hf_relopt.hf.distance_batch import load_network, read_batch

    base = first or str(config_in(locate(second))["base_model_name_or_path"])
    networks = load_network(base), load_network(second)
    inputs = read_batch(batch, networks[1], [second, base])
    return measured_on(*networks, inputs, gradients)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on a terminal's stderr; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, name: bar.update(
            task, completed=done, total=total, description=name
        )


def _report(found: Distance, top: int | None) -> Iterator[str]:
    from hf_relopt.distance.reading import sentences
    from hf_relopt.distance.table import apart_by_reason, kind_rows, rows, summary

    yield f"from {found.before}"
    yield f"to   {found.after}"
    if found.partial:
        yield f"PARTIAL: {found.partial}"
    yield ""
    totals = summary(found)
    width = max(len(words) for words, _ in totals)
    yield from (f"{words:<{width}}  {value}" for words, value in totals)
    shown = top if top is not None else TOP if len(found.layers) > TOP else None
    if said := sentences(found):
        yield ""
        yield from said
    if shown is not None:
        head, cells = kind_rows(found)
        yield ""
        yield from _aligned([head, *cells], words=1)
    head, cells = rows(found, shown)
    yield ""
    yield from _aligned([head, *cells], words=2)
    if shown is not None and shown < len(found.layers):
        yield ""
        yield (
            f"The {shown} of {len(found.layers)} layers that moved most; --top "
            f"{len(found.layers)} shows all."
        )
    if found.apart:
        yield ""
        yield "Left out of the totals:"
        yield from (f"  {reason}: {names}" for reason, names in apart_by_reason(found))


def _aligned(table: list[tuple[str, ...]], words: int) -> Iterator[str]:
    """Columns aligned; those after the first ``words`` to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
