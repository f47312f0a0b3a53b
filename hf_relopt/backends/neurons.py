"""Neuron-wise normalisation of many directions: those of one shape as one stack."""

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
)
from hf_relopt.backends.stacks import joined
from hf_relopt.rules import neurons


@dataclass(frozen=True)
class Neurons:
    """What is kept of the neurons of some matrices.

    Attributes:
        sizes: v, a view of the state: [count, m], or [count, n] where neurons are columns.
        over: what the squares of a neuron are summed over: "columns" where neurons are rows.
        learn: 0-dim bool, is the gradient usable?
    """

    sizes: Tensor
    over: Over
    learn: Tensor


def even(
    matrices: Sequence[Matrices], kept: Sequence[Neurons], beta: float, across: Across
) -> list[Tensor]:
    """Take directions into the sizes of their neurons; return each over these. Both in place.

    Entries are about one, as orthogonalization leaves them.

    Every rank passes the same matrices in the same order, all of one device.
    """

    def work(some: list[list[int]]) -> Iterator[Tensor]:
        stacks = [joined([matrices[n].grads for n in places]) for places in some]
        overs = [kept[places[0]].over for places in some]
        keys = [(places[0], over) for places, over in zip(some, overs, strict=True)]
        sums = across(keys, list(map(neurons.sums, stacks, overs)))
        for places, stack, over, own in zip(some, stacks, overs, sums, strict=True):
            first, state = matrices[places[0]], [kept[n].sizes for n in places]
            sizes = RunningSizes(state, own)
            learn = of_each([kept[n].learn for n in places], state)
            sizes.take_in(own / (first.columns if over == "columns" else first.rows), learn, beta)
            yield neurons.even_(stack, sizes.now, over)

    return in_stacks(matrices, work, [each.over for each in kept])
