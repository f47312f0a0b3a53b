"""Neuron-wise normalisation of many directions: those of one shape as one stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_relopt.backends.matrices import Across, Matrices, Over, rounds, units
from hf_relopt.backends.orthogonalize import without_autocast
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
    """Take directions into the sizes of their neurons, in place; return each over these.

    Every rank passes the same matrices in the same order, all of one device.
    """
    found = [each.grads for each in matrices]
    if not matrices:
        return found
    with without_autocast(found[0].device):
        for some in rounds(matrices, [each.over for each in kept]):
            stacks = [units([matrices[n] for n in places]) for places in some]
            overs = [kept[places[0]].over for places in some]
            keys = [(places[0], over) for places, over in zip(some, overs, strict=True)]
            own = [neurons.sums(stack, over) for stack, over in zip(stacks, overs, strict=True)]
            sums = across(keys, own)
            for places, stack, over, each in zip(some, stacks, overs, sums, strict=True):
                first = matrices[places[0]]
                counts = [matrices[n].grads.size(0) for n in places]
                state = [kept[n].sizes for n in places]
                before = torch.cat(state).to(each)
                mean = each / (first.columns if over == "columns" else first.rows)
                learn = [kept[n].learn.expand(k, 1) for n, k in zip(places, counts, strict=True)]
                new = neurons.running_rms(before, mean, beta=beta)
                new = torch.where(torch.cat(learn), new, before)
                torch._foreach_copy_(state, list(new.split(counts)))
                results = neurons.even(stack, new, over).split(counts)
                for place, result in zip(places, results, strict=True):
                    found[place] = result
    return found
