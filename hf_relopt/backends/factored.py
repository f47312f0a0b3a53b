"""Factored second moments of many gradients: those of one shape as one stack.

A matrix may lie on several ranks. What they exchange are the sums of its rows or columns, of all
matrices together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_relopt.backends.matrices import Across, Matrices, Over, rounds, units
from hf_relopt.backends.orthogonalize import without_autocast
from hf_relopt.rules import factored


@dataclass(frozen=True)
class Factors:
    """What is kept of some matrices.

    Attributes:
        rows, columns: views of the state, [count, m] and [count, n], of what this rank has.
        learn: 0-dim bool, is the gradient that they are cut from usable?
    """

    rows: Tensor
    columns: Tensor
    learn: Tensor


def follow(
    matrices: Sequence[Matrices], factors: Sequence[Factors], beta: float, across: Across
) -> list[Tensor]:
    """Take gradients into their factors, in place; return each over the product of the two.

    A matrix whose gradient is all zero rests, and what is known of it does not fade.

    Every rank passes the same matrices in the same order, all of one device. Float64 stays, all
    else is float32.
    """
    found = [each.grads for each in matrices]
    if not matrices:
        return found
    with without_autocast(found[0].device):
        for some in rounds(matrices):
            stacks = [
                _Stack([matrices[n] for n in places], [factors[n] for n in places])
                for places in some
            ]
            _take_in(stacks, [places[0] for places in some], beta, across)
            for places, stack in zip(some, stacks, strict=True):
                for place, result in zip(places, stack.directions(), strict=True):
                    found[place] = result
    return found


def _take_in(stacks: Sequence[_Stack], firsts: Sequence[int], beta: float, across: Across) -> None:
    """Columns first, since what is sharded most often is sharded by rows.

    The sums of columns and of all entries then meet at once, and those of rows are complete.
    """
    over_rows: list[tuple[int, Over]] = [(first, "rows") for first in firsts]
    over_all: list[tuple[int, Over]] = [(first, "all") for first in firsts]
    over_columns: list[tuple[int, Over]] = [(first, "columns") for first in firsts]
    sums = [*[stack.sums_of_columns() for stack in stacks], *[stack.sums() for stack in stacks]]
    sums = across([*over_rows, *over_all], sums)
    for stack, columns, every in zip(stacks, sums[: len(stacks)], sums[len(stacks) :], strict=True):
        stack.take_in_columns(columns, every, beta)
    rows = across(over_columns, [stack.sums_of_rows() for stack in stacks])
    for stack, own in zip(stacks, rows, strict=True):
        stack.take_in_rows(own, beta)


class _Stack:
    """Matrices that are alike, and their factors."""

    def __init__(self, matrices: Sequence[Matrices], factors: Sequence[Factors]) -> None:
        first = matrices[0]
        self.rows, self.columns = first.rows, first.columns
        self.counts = [each.grads.size(0) for each in matrices]
        self.units = units(matrices)
        learn = [each.learn.expand(n, 1) for each, n in zip(factors, self.counts, strict=True)]
        self.learn = torch.cat(learn)
        self.row_state = [each.rows for each in factors]
        self.column_state = [each.columns for each in factors]
        self.row_sizes = torch.cat(self.row_state).to(self.units)
        self.column_sizes = torch.cat(self.column_state).to(self.units)

    def sums(self) -> Tensor:
        """Of the squares of all entries, [count, 1]."""
        return self.units.square().sum((1, 2)).unsqueeze(1)

    def sums_of_columns(self) -> Tensor:
        """Of squares over those of the rows' sizes, [count, n]."""
        return factored.sums_of_columns(self.units.square(), self.row_sizes)

    def take_in_columns(self, columns: Tensor, every: Tensor, beta: float) -> None:
        """Update the sizes of columns, given the full sums."""
        self.learn &= every > 0
        # Blocks and experts are matrices of their own: each gradient is taken in at size one.
        self.mean_square = every / (self.rows * self.columns)
        means = columns / self.rows / self.mean_square
        self.column_sizes = self._taken_in(self.column_state, self.column_sizes, means, beta)

    def sums_of_rows(self) -> Tensor:
        """Of squares over those of the columns' sizes, [count, m]."""
        return factored.sums_of_rows(self.units.square(), self.column_sizes)

    def take_in_rows(self, rows: Tensor, beta: float) -> None:
        """Update the sizes of rows, given the full sums."""
        means = rows / self.columns / self.mean_square
        self.row_sizes = self._taken_in(self.row_state, self.row_sizes, means, beta)

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
