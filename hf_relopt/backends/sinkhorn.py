"""Gradients balanced together: those of one shape as one stack, and the sums of all ranks at once.

A matrix may lie on several ranks. What they exchange are the sums of its rows or columns, of all
matrices together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_relopt.backends.kernel import compute_dtype
from hf_relopt.backends.orthogonalize import without_autocast
from hf_relopt.backends.part import piece_size
from hf_relopt.backends.stacks import LARGEST, are_worthwhile, stacks
from hf_relopt.rules import sinkhorn

# Sums on this rank -> over all ranks, for the places of what they are sums of.
Across = Callable[[Sequence[int], list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Unbalanced:
    """Matrices of one shape that are cut from one gradient.

    Attributes:
        grads: [count, m, n], what this rank has of each, perhaps no row or column.
        size: 0-dim, the root mean square of the full gradient.
        numel: of the full gradient.
        rows, columns: of a full matrix.
        lies: equal where two lie alike over several ranks; None where this one has all.
    """

    grads: Tensor
    size: Tensor
    numel: int
    rows: int
    columns: int
    lies: Hashable = None


def balance(
    matrices: Sequence[Unbalanced], iterations: int, across_rows: Across, across_columns: Across
) -> list[Tensor]:
    """Each ``grads`` with rows and columns scaled alternately to a root mean square of one.

    Every rank passes the same matrices in the same order, all of one device. Float64 stays, all
    else is float32.

    Args:
        across_rows, across_columns: add the sums of columns (over rows), of rows (over columns).
    """
    found = [each.grads for each in matrices]
    if not matrices:
        return found
    device = found[0].device
    stacked = _alike(matrices, LARGEST if are_worthwhile(device) else piece_size(device))
    # What lies on several ranks goes on together; the rest one by one, for its temporaries' sake.
    shared = [places for places in stacked if matrices[places[0]].lies is not None]
    rounds = [[places] for places in stacked if matrices[places[0]].lies is None]
    with without_autocast(device):
        for some in [*rounds, shared] if shared else rounds:
            scales = _scales(matrices, some, iterations, across_rows, across_columns)
            for places, rows, columns in zip(some, *scales, strict=True):
                own = [matrices[place] for place in places]
                results = sinkhorn.balanced(_units(own), rows, columns)
                counts = [each.grads.size(0) for each in own]
                for place, result in zip(places, results.split(counts), strict=True):
                    found[place] = result
    return found


def _scales(
    matrices: Sequence[Unbalanced],
    stacked: Sequence[Sequence[int]],
    iterations: int,
    across_rows: Across,
    across_columns: Across,
) -> tuple[list[Tensor], list[Tensor]]:
    """Those of rows, [count, m], and columns, [count, n], of each stack of matrices."""
    firsts = [places[0] for places in stacked]
    rows = [matrices[first].rows for first in firsts]
    columns = [matrices[first].columns for first in firsts]
    squares = [_units([matrices[place] for place in places]).square_() for places in stacked]
    row_scales: list[Tensor] = []
    column_scales = [each.new_ones(each.size(0), each.size(2)) for each in squares]
    for _ in range(iterations):
        each = zip(squares, column_scales, strict=True)
        sums = across_columns(firsts, [sinkhorn.sums_of_rows(s, c) for s, c in each])
        row_scales = list(map(sinkhorn.scales, sums, columns))
        each = zip(squares, row_scales, strict=True)
        sums = across_rows(firsts, [sinkhorn.sums_of_columns(s, r) for s, r in each])
        column_scales = list(map(sinkhorn.scales, sums, rows))
    return row_scales, column_scales


def _alike(matrices: Sequence[Unbalanced], limit: int) -> list[list[int]]:
    """Places of those that make a stack."""
    kinds = [
        (each.grads.shape[1:], each.grads.dtype, each.rows, each.columns, each.lies)
        for each in matrices
    ]
    # By the full gradients: every rank makes the same stacks, whatever it has of them.
    return list(stacks(kinds, [each.numel for each in matrices], limit))


def _units(alike: Sequence[Unbalanced]) -> Tensor:
    """The gradients over their sizes, whose squares have room in their dtype."""
    wide = compute_dtype(alike[0].grads.dtype)
    smallest = torch.finfo(wide).smallest_normal
    units = [each.grads.to(wide) / each.size.to(wide).clamp(min=smallest) for each in alike]
    return units[0] if len(units) == 1 else torch.cat(units)
