"""`hf-relopt compress MODEL --out DIR`: a model's weights in codes of 8 to 16 bits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_relopt.errors import RelOptError

if TYPE_CHECKING:
    from rich.console import Console

    from hf_relopt.hf.coding_error import CodingError
    from hf_relopt.hf.compress_folder import CompressedFolder

DONE, PARTIAL, USAGE = 0, 1, 2
# Weights that the table shows: those that lost most.
WORST = 10
WIDTH = 110


def compress(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="The model: a folder that save_pretrained has written, or one of the hub (NAME or "
            "NAME@REVISION).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            show_default=False,
            help="The folder to write: one that is not there yet, or is empty.",
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="lns8, lns10, lns12 or lns16: bits per weight. What is lost of weights is about "
            "1.4 %, 0.4 %, 0.1 % or 0.01 % of their size.",
        ),
    ] = "lns8",
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="ROLE_OR_PATTERN",
            help="Weights that stay numbers: a role (head, embedding, conv, matrix), or a pattern "
            "over names, as 'lm_head.*'. May be repeated.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Measure the model on it, before and after. For a causal language model a text: "
            "its perplexity on the first 64 windows of at most 512 tokens. For a classifier of "
            "sequences a .tsv with columns sentence and label: its accuracy.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object alone, with all weights.")
    ] = False,
) -> None:
    """Store a model's weights in a logarithmic number system, of 8 to 16 bits per weight.

    Matrices, embeddings, heads and kernels of convolutions become codes; biases and norm weights
    stay numbers. The new folder holds the configuration, the tokenizer or processor if there is
    one, and a model.safetensors that takes about a quarter (lns8 of float32) of the old one. It
    is read back before it is put in place. Nothing is trained, and all runs on the CPU.

    \b
    Examples:
      hf-relopt compress gpt2 --out gpt2-lns8
      hf-relopt compress runs/demo --format lns12 --out runs/demo-lns12 --data test.txt
      hf-relopt compress MODEL --out DIR --skip head --skip '*.layer.0.*'

    \b
    To use it in Python:
      import hf_relopt
      model = AutoModelForCausalLM.from_pretrained("gpt2-lns8")

    \b
    The table shows the weights that lost most, relative to their size: |W' - W| / |W|. "below" are
    entries too small for the format, which become the smallest that it has; "at top" are those at
    the largest level of their row, which lose nothing, but cannot grow in a training.

    \b
    The exit code is 0; 1 if the folder is written and files and model did not fit in all weights
    (the output says which); 2 for a mistake in the options or files, after which nothing is
    written.
    """  # noqa: D301
    raise typer.Exit(
        run_compress(model, out, format=format, skip=skip or (), data=data, as_json=as_json)
    )


def run_compress(
    model: str,
    out: Path,
    *,
    format: str = "lns8",
    skip: Sequence[str] = (),
    data: Path | None = None,
    as_json: bool = False,
) -> int:
    """Write the folder and print what was lost; arguments are the command's options.

    Returns:
        The exit code that the command's help describes.
    """
    try:
        from hf_relopt.hf.whole_folder import require_free

        # Before Transformers is imported, which takes seconds.
        require_free(out)
        with _status() as tell:
            from hf_relopt.hf.compress_folder import compress_folder

            found = compress_folder(model, out, format, skip=skip, data=data, tell=tell)
    except (RelOptError, OSError) as error:
        print(f"hf-relopt compress: {error}", file=sys.stderr)
        return USAGE
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _show(found)
    for note in found.notes:
        print(f"attention: {note}", file=sys.stderr)
    return PARTIAL if found.notes else DONE


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """What is being done, on a terminal's stderr; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda words: status.update(escape(words))


def _show(found: CompressedFolder) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    rows = _facts(found)
    width = max(len(words) for words, _ in rows)
    for words, value in rows:
        console.print(f"{words:<{width}}  {value}", markup=False)
    # A file has no width, and names are not to be folded there.
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    _table(console, found)
    files = found.files
    size, names = _amount(sum(files.values())), next(iter(files))
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    console.print(f"wrote {found.out}: {names}{more}, {size}", markup=False)


def _facts(found: CompressedFolder) -> list[tuple[str, str]]:
    total = found.total
    rows = [
        ("model", f"{found.source} ({found.kind})"),
        ("weights before", _amount(found.before)),
        (
            f"weights in {found.form.name}",
            f"{_amount(found.after)}, {found.after / found.before:.1%}",
        ),
        ("in codes", f"{total.entries:,} entries of {len(found.errors)} weights"),
        ("bits per weight in codes", f"{total.bits:.3f}, scales included"),
    ]
    if (quality := found.quality) is not None:
        change = f"{quality.before:.4f} before, {quality.after:.4f} after"
        rows.append((quality.metric, f"{change} ({quality.on})"))
    return rows


def _table(console: Console, found: CompressedFolder) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    worst = sorted(found.errors, key=lambda each: -each.relative)[:WORST]
    shown = "all" if len(worst) == len(found.errors) else f"the {len(worst)} that lost most"
    title = f"Weights in codes: {shown} of {len(found.errors)}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("weight", overflow="fold")
    for name in ("shape", "error", "below", "at top"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in worst:
        table.add_row(*map(Text, _cells(each)))
    table.add_section()
    table.add_row(*map(Text, _cells(found.total)))
    console.print()
    console.print(table)


def _cells(error: CodingError) -> tuple[str, ...]:
    shape = "x".join(map(str, error.shape))
    shares = error.below / error.entries, error.at_top / error.entries
    return (error.name, shape, f"{error.relative:.3%}", *(f"{share:.3%}" for share in shares))


def _amount(size: int) -> str:
    from hf_relopt.cli.doctor_report import amount

    return amount(size)
