"""What other optimizers reach in the demo's steps; shown after a run that the record is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RECORD = "benchmarks/results/demo_cpu_202611.md"
SEEDS = (42, 43)
PYTHON = "3.11.7"  # whose standard library was the text
# Sequences to train on; the library of another Python is not the same text, but as long.
SEQUENCES, TOLERANCE = 0, 0.15


@dataclass(frozen=True)
class Row:
    """One optimizer of the record.

    Attributes:
        words: what the summary calls it.
        optim: its name.
        lr: the learning rate that was given; None: its own.
        perplexity: on the validation part, mean of SEEDS.
    """

    words: str
    optim: str
    lr: float | None
    perplexity: float


ROWS: tuple[Row, ...] = ()
# What a run's record must say to be one of the record's, besides optimizer and seed.
SETTINGS: dict[str, Any] = {}
# Of the optimizer, and checked by way of ROWS.
_APART = {"optim", "learning_rate", "seed", "max_grad_norm"}


def comparison(record: Mapping[str, Any]) -> list[str]:
    """Lines that compare a finished run with the record; none unless it is one of its runs.

    Args:
        record: of the run, as run.json holds it.
    """
    settings = record.get("recipe", {})
    if record.get("steps") != SETTINGS.get("max_steps") or settings.get("seed") not in SEEDS:
        return []
    told = {name: value for name, value in settings.items() if name not in _APART}
    if told != {name: value for name, value in SETTINGS.items() if name not in _APART}:
        return []
    sequences = record.get("sequences", 0)
    if abs(sequences - SEQUENCES) > TOLERANCE * SEQUENCES:
        return []
    mine = (settings.get("optim"), settings.get("learning_rate"))
    if mine not in [(row.optim, row.lr) for row in ROWS]:
        return []
    width = max(len(row.words) for row in ROWS)
    return [
        f"The same {record['steps']} steps with other optimizers, mean of {len(SEEDS)} seeds "
        f"({RECORD}, Python {PYTHON}):",
        *(f"  {row.words:<{width}}  perplexity {row.perplexity:6.1f}" for row in ROWS),
    ]
