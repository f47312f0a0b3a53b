"""The doctor's facts on a terminal: the texts of doctor_report in colour and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_relopt.cli.doctor_report import (
    fault_words,
    launch_words,
    memory_rows,
    memory_words,
    not_seen,
    paragraphs,
    version_rows,
)

COLOURS = {"exact": "bold green", "refused": "bold red"}
WIDTH = 110  # no wider: long lines are hard to read


def show(facts: dict[str, Any], console: Console | None = None) -> None:
    """Print the report; NO_COLOR is obeyed, as rich does.

    Args:
        facts: as doctor.examine makes them.
        console: where to; None: this terminal.
    """
    console = console or Console(highlight=False)
    console.width = min(console.width, WIDTH)
    _launch(console, facts)
    if facts["plan"] is not None:
        _plan(console, facts)
    rows = memory_rows(facts)
    _table(console, f"Bytes, weights in {facts['memory']['dtype']}", rows[0], rows[1:], numbers=1)
    for text in memory_words(facts):
        _paragraph(console, text)
    _table(console, "Versions", ("package", "version"), version_rows(facts))
    for words in fault_words(facts):
        kind, _, text = words.partition(": ")
        _paragraph(console, text, kind, "bold yellow" if kind == "attention" else "dim")


def _launch(console: Console, facts: dict[str, Any]) -> None:
    verdict = facts["verdict"]
    console.print(Text.assemble(("launch   ", "dim"), launch_words(facts)))
    console.print(Text.assemble(("verdict  ", "dim"), (verdict, COLOURS[verdict])))
    for text in paragraphs(facts):
        _paragraph(console, text)


def _plan(console: Console, facts: dict[str, Any]) -> None:
    plan = facts["plan"]
    head = ("role", "follows", "lr", "tensors", "parameters", "first")
    rows = [
        (
            group["role"],
            group["follows"],
            f"{group['lr']:g}",
            f"{group['tensors']:,}",
            f"{group['parameters']:,}",
            group["first"],
        )
        for group in plan["groups"]
    ]
    skipped = [("", "not trained", "-", "1", "", name) for name in plan["skipped"]]
    title = (
        f"Plan for {plan['model']} ({plan['class']}): {plan['tensors']:,} tensors, "
        f"{plan['parameters']:,} parameters"
    )
    _table(console, title, head, [*rows, *skipped], numbers=2, words_again=5)
    _paragraph(console, not_seen(facts))


def _table(
    console: Console,
    title: str,
    head: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    numbers: int = 99,
    words_again: int = 99,
) -> None:
    """A table whose columns from ``numbers`` to before ``words_again`` are set to the right."""
    console.print()
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for place, name in enumerate(head):
        justify = "right" if numbers <= place < words_again else "left"
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _paragraph(console: Console, text: str, kind: str = "", style: str = "") -> None:
    words = Text.assemble((f"{kind}: ", style), text) if kind else Text(text)
    console.print(Padding(words, (0, 0, 0, 2)))
