"""Factored second moments of many gradients: those of one shape as one stack.

A matrix may lie on several ranks. What they exchange are the sums of its rows or columns, of all
matrices together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_relopt.backends.matrices import (
    Across,
    Matrices,
    Over,
    RunningSizes,
    in_stacks,
    of_each,
    units,
)
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

    def work(some: list[list[int]]) -> Iterator[Tensor]:
        stacks = [
            _Stack([matrices[n] for n in places], [factors[n] for n in places]) for places in some
        ]
        _take_in(stacks, [places[0] for places in some], beta, across)
        return map(_Stack.directions, stacks)

    return in_stacks(matrices, work)


def _take_in(stacks: Sequence[_Stack], firsts: Sequence[int], beta: float, across: Across) -> None:
    """Columns first, since what is sharded most often is sharded by rows.

    The sums of columns and of all entries then meet at once, and those of rows are complete.
    """
    over_rows: list[tuple[int, Over]] = [(first, "rows") for first in firsts]
    over_all: list[tuple[int, Over]] = [(first, "all") for first in firsts]
    over_columns: list[tuple[int, Over]] = [(first, "columns") for first in firsts]
    sums = [*map(_Stack.sums_of_columns, stacks), *map(_Stack.sums, stacks)]
    sums = across([*over_rows, *over_all], sums)
    for stack, columns, every in zip(stacks, sums[: len(stacks)], sums[len(stacks) :], strict=True):
        stack.take_in_columns(columns, every, beta)
    rows = across(over_columns, list(map(_Stack.sums_of_rows, stacks)))
    for stack, own in zip(stacks, rows, strict=True):
        stack.take_in_rows(own, beta)


class _Stack:
    """Matrices that are alike, and their factors."""

    def __init__(self, matrices: Sequence[Matrices], factors: Sequence[Factors]) -> None:
        self.matrices = matrices
        self.numbers = matrices[0].rows, matrices[0].columns
        # The gradients over their sizes are made again for the directions: these are as large.
        self.squares = units(matrices).square_()
        rows = [each.rows for each in factors]
        self.learn = of_each([each.learn for each in factors], rows)
        self.rows = RunningSizes(rows, self.squares)
        self.columns = RunningSizes([each.columns for each in factors], self.squares)

    def sums(self) -> Tensor:
        """Of the squares of all entries, [count, 1]."""
        return self.squares.sum((1, 2)).unsqueeze(1)

    def sums_of_columns(self) -> Tensor:
        """Of squares over those of the rows' sizes, [count, n]."""
        return factored.sums_of_columns(self.squares, self.rows.now)

    def take_in_columns(self, columns: Tensor, every: Tensor, beta: float) -> None:
        """Update the sizes of columns, given the full sums."""
        m, n = self.numbers
        self.learn &= every > 0
        # Blocks and experts are matrices of their own: each gradient is taken in at size one.
        self.mean_square = every / (m * n)
        self.columns.take_in(columns / m / self.mean_square, self.learn, beta)

    def sums_of_rows(self) -> Tensor:
        """Of squares over those of the columns' sizes, [count, m]."""
        return factored.sums_of_rows(self.squares, self.columns.now)

    def take_in_rows(self, rows: Tensor, beta: float) -> None:
        """Update the sizes of rows, given the full sums."""
        self.rows.take_in(rows / self.numbers[1] / self.mean_square, self.learn, beta)

    def directions(self) -> Tensor:
        """[count, m, n]."""
        del self.squares
        return factored.direction(units(self.matrices), self.rows.now, self.columns.now)
