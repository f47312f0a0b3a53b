"""Gradients balanced together: those of one shape as one stack, and the sums of all ranks at once.

A matrix may lie on several ranks. What they exchange are the sums of its rows or columns, of all
matrices together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from hf_relopt.backends.matrices import Across, Matrices, Over, in_stacks, units
from hf_relopt.rules import sinkhorn


def balance(matrices: Sequence[Matrices], iterations: int, across: Across) -> list[Tensor]:
    """Each ``grads`` with rows and columns scaled alternately to a root mean square of one.

    Every rank passes the same matrices in the same order, all of one device. Float64 stays, all
    else is float32.
    """

    def work(some: list[list[int]]) -> Iterator[Tensor]:
        scales = _scales(matrices, some, iterations, across)
        for places, rows, columns in zip(some, *scales, strict=True):
            yield sinkhorn.balanced(units([matrices[place] for place in places]), rows, columns)

    return in_stacks(matrices, work)


def _scales(
    matrices: Sequence[Matrices],
    stacked: Sequence[Sequence[int]],
    iterations: int,
    across: Across,
) -> tuple[list[Tensor], list[Tensor]]:
    """Those of rows, [count, m], and columns, [count, n], of each stack of matrices."""
    firsts = [places[0] for places in stacked]
    over_rows: list[tuple[int, Over]] = [(first, "rows") for first in firsts]
    over_columns: list[tuple[int, Over]] = [(first, "columns") for first in firsts]
    rows = [matrices[first].rows for first in firsts]
    columns = [matrices[first].columns for first in firsts]
    squares = [units([matrices[place] for place in places]).square_() for places in stacked]
    row_scales: list[Tensor] = []
    column_scales = [each.new_ones(each.size(0), each.size(2)) for each in squares]
    for _ in range(iterations):
        each = zip(squares, column_scales, strict=True)
        sums = across(over_columns, [sinkhorn.sums_of_rows(s, c) for s, c in each])
        row_scales = list(map(sinkhorn.scales, sums, columns))
        each = zip(squares, row_scales, strict=True)
        sums = across(over_rows, [sinkhorn.sums_of_columns(s, r) for s, r in each])
        column_scales = list(map(sinkhorn.scales, sums, rows))
    return row_scales, column_scales
