"""Factored second moments of many gradients: those of one shape as one stack.

A matrix may lie on several ranks. What they exchange are the sums of its rows or columns, of all
matrices together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_relopt.backends.matrices import Across, Matrices, rounds, units
from hf_relopt.backends.orthogonalize import without_autocast
from hf_relopt.rules import factored


@dataclass(frozen=True)
class Factors:
    """What is kept of some matrices.

    Attributes:
        rows, columns: views of the state, [count, m] and [count, n], of what this rank has.
        learn: 0-dim bool, is the gradient that they are cut from usable?
        apart: does one rest whose part of the gradient is zero, as an expert does?
    """

    rows: Tensor
    columns: Tensor
    learn: Tensor
    apart: bool


def follow(
    matrices: Sequence[Matrices],
    factors: Sequence[Factors],
    beta: float,
    across_rows: Across,
    across_columns: Across,
    across_all: Across,
) -> list[Tensor]:
    """Take gradients into their factors, in place; return each over the product of the two.

    Every rank passes the same matrices in the same order, all of one device. Float64 stays, all
    else is float32.

    Args:
        across_rows, across_columns, across_all: add the sums of columns (over rows), of rows (over
            columns), of all entries.
    """
    found = [each.grads for each in matrices]
    if not matrices:
        return found
    with without_autocast(found[0].device):
        for some in rounds(matrices):
            firsts = [places[0] for places in some]
            stacks = [
                _Stack([matrices[n] for n in places], [factors[n] for n in places])
                for places in some
            ]
            apart = [n for n, stack in enumerate(stacks) if stack.apart]
            if apart:
                sums = across_all([firsts[n] for n in apart], [stacks[n].sums() for n in apart])
                for n, each in zip(apart, sums, strict=True):
                    stacks[n].learn &= each > 0
            rows = across_columns(firsts, [stack.sums_of_rows() for stack in stacks])
            for stack, each in zip(stacks, rows, strict=True):
                stack.take_in_rows(each, beta)
            columns = across_rows(firsts, [stack.sums_of_columns() for stack in stacks])
            for places, stack, each in zip(some, stacks, columns, strict=True):
                stack.take_in_columns(each, beta)
                for place, result in zip(places, stack.directions(), strict=True):
                    found[place] = result
    return found


class _Stack:
    """Matrices that are alike, and their factors."""

    def __init__(self, matrices: Sequence[Matrices], factors: Sequence[Factors]) -> None:
        first = matrices[0]
        self.rows, self.columns = first.rows, first.columns
        self.counts = [each.grads.size(0) for each in matrices]
        self.units = units(matrices)
        self.apart = any([each.apart for each in factors])
        learn = [each.learn.expand(n, 1) for each, n in zip(factors, self.counts, strict=True)]
        self.learn = torch.cat(learn)
        self.kept = [each.rows for each in factors], [each.columns for each in factors]
        self.row_sizes, self.column_sizes = (torch.cat(own).to(self.units) for own in self.kept)

    def sums(self) -> Tensor:
        """[count, 1]."""
        return self.units.square().sum((1, 2)).unsqueeze(1)

    def sums_of_rows(self) -> Tensor:
        return factored.sums_of_rows(self.units.square(), self.column_sizes)

    def sums_of_columns(self) -> Tensor:
        return factored.sums_of_columns(self.units.square(), self.row_sizes)

    def take_in_rows(self, sums: Tensor, beta: float) -> None:
        self.row_sizes = self._taken_in(self.kept[0], self.row_sizes, sums / self.columns, beta)

    def take_in_columns(self, sums: Tensor, beta: float) -> None:
        self.column_sizes = self._taken_in(self.kept[1], self.column_sizes, sums / self.rows, beta)

    def _taken_in(
        self, state: list[Tensor], before: Tensor, mean_squares: Tensor, beta: float
    ) -> Tensor:
        new = factored.running_rms(before, mean_squares, beta=beta)
        new = torch.where(self.learn, new, before)
        torch._foreach_copy_(state, list(new.split(self.counts)))
        return new

    def directions(self) -> Sequence[Tensor]:
        """[count, m, n] of each weight."""
        found = factored.direction(self.units, self.row_sizes, self.column_sizes)
        return found.split(self.counts)
