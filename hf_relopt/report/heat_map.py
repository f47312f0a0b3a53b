"""The heat map of relative updates: layers and steps, in stretches where there are many."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from hf_relopt.report.chart import HeatMap
from hf_relopt.report.numbers import medians
from hf_relopt.report.telemetry_file import Telemetry

# Cells of 8 pixels at full width; more would be a page of many megabytes.
COLUMNS, ROWS, CELLS = 120, 400, 24_000
_BLOCK = re.compile(r"(?:^|\.)([^.]+\.\d+)(?:\.|$)")


def heat_map(telemetry: Telemetry) -> HeatMap | None:
    """Relative update per layer and step; None if none was measured."""
    table = telemetry.tables["relative_update"]
    if not table.size or not np.isfinite(table).any():
        return None
    names = [layer.name for layer in telemetry.layers]
    layers = stretches(len(names), ROWS)
    steps = stretches(len(table), min(COLUMNS, max(1, CELLS // len(layers))))
    by_step = np.stack([medians(table[part.start : part.stop], axis=0) for part in steps])
    values = np.stack([medians(by_step[:, part.start : part.stop], axis=1) for part in layers])
    numbers = telemetry.steps.astype(int)
    short = shortened(names)
    return HeatMap(
        key="relative_update_by_layer",
        title="Relative update by layer",
        values=values,
        rows=[_together(short[part.start : part.stop]) for part in layers],
        blocks=[block_of(names[part.start]) for part in layers],
        spans=[(int(numbers[part.start]), int(numbers[part.stop - 1])) for part in steps],
        note=_note(len(table), len(steps), len(names), len(layers)),
    )


def stretches(count: int, most: int) -> list[range]:
    """``count`` places in at most ``most`` stretches, of nearly equal length."""
    parts = min(count, most)
    ends = [count * part // parts for part in range(parts + 1)] if parts else []
    return [range(begin, end) for begin, end in pairwise(ends)]


def block_of(name: str) -> str:
    """The outermost numbered part of a name, as in "h.0", or its last word."""
    found = _BLOCK.findall(name)
    if found:
        return str(found[0])
    parts = [part for part in name.split(".") if part not in ("weight", "bias")]
    return parts[-1] if parts else name


def shortened(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them begin with."""
    split = [name.split(".") for name in names]
    same = 0
    while len(names) > 1 and all(len(parts) > same + 1 for parts in split):
        if len({parts[same] for parts in split}) > 1:
            break
        same += 1
    return [".".join(parts[same:]) for parts in split]


def _together(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{names[0]} to {names[-1]} ({len(names)} layers)"


def _note(steps: int, columns: int, layers: int, rows: int) -> str:
    notes = []
    if columns < steps:
        notes.append(
            f"{steps:,} logged steps are shown in {columns:,} columns; each cell is the median."
        )
    if rows < layers:
        notes.append(f"{layers:,} layers are shown in {rows:,} rows, by their medians.")
    return " ".join(notes)
