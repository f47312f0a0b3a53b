"""Gradients as matrices: those that are cut from one weight, and which of a model's are alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_relopt.backends.kernel import compute_dtype
from hf_relopt.backends.orthogonalize import without_autocast
from hf_relopt.backends.part import piece_size
from hf_relopt.backends.stacks import LARGEST, are_worthwhile, joined, stacks
from hf_relopt.rules import factored

# Over what a sum has been taken.
Over = Literal["rows", "columns", "all"]
# Sums on this rank -> over all ranks, for the places of the matrices whose sums they are.
Across = Callable[[Sequence[tuple[int, Over]], list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Matrices:
    """Matrices of one shape that are cut from one gradient.

    Attributes:
        grads: [count, m, n], what this rank has of each, perhaps no row or column.
        size: 0-dim, the root mean square of the full gradient; None where it is about one.
        numel: of the full gradient.
        rows, columns: of a full matrix.
        lies: equal where two lie alike over several ranks; None where this one has all.
    """

    grads: Tensor
    size: Tensor | None
    numel: int
    rows: int
    columns: int
    lies: Hashable = None


def in_stacks(
    matrices: Sequence[Matrices],
    work: Callable[[list[list[int]]], Iterable[Tensor]],
    ways: Sequence[Hashable] = (),
) -> list[Tensor]:
    """What ``work`` makes of each of ``matrices``, of those that are alike as one stack.

    What lies on several ranks is worked on together; the rest one stack after the other, for its
    temporaries' sake. Every rank passes the same matrices in the same order, all of one device.

    Args:
        work: places of some stacks -> what becomes of each stack.
        ways: one for each, equal where two may be stacked; none: all are alike.
    """
    found = [each.grads for each in matrices]
    if not matrices:
        return found
    with without_autocast(found[0].device):
        for some in _rounds(matrices, ways or [None] * len(matrices)):
            for places, stack in zip(some, work(some), strict=True):
                counts = [found[place].size(0) for place in places]
                for place, result in zip(places, stack.split(counts), strict=True):
                    found[place] = result
    return found


def _rounds(matrices: Sequence[Matrices], ways: Sequence[Hashable]) -> Iterator[list[list[int]]]:
    """Places of those that make a stack, as many stacks at once as have to be."""
    device = matrices[0].grads.device
    kinds = [
        (each.grads.shape[1:], each.grads.dtype, each.rows, each.columns, each.lies, way)
        for each, way in zip(matrices, ways, strict=True)
    ]
    limit = LARGEST if are_worthwhile(device) else piece_size(device)
    # By the full gradients: every rank makes the same stacks, whatever it has of them.
    stacked = list(stacks(kinds, [each.numel for each in matrices], limit))
    yield from ([places] for places in stacked if matrices[places[0]].lies is None)
    shared = [places for places in stacked if matrices[places[0]].lies is not None]
    if shared:
        yield shared


def units(alike: Sequence[Matrices]) -> Tensor:
    """The gradients over their sizes, whose squares have room in their dtype: one stack of its own.

    Float64 stays, all else is float32.
    """
    first, wide = alike[0].grads, compute_dtype(alike[0].grads.dtype)
    stack = joined([each.grads for each in alike])
    # What lies there is the gradients'.
    stack = stack.to(wide, copy=stack.data_ptr() == first.data_ptr())
    sizes = [each.size.expand(len(each.grads)) for each in alike if each.size is not None]
    if not sizes:
        return stack
    smallest = torch.finfo(wide).smallest_normal
    return stack.div_(torch.cat(sizes).to(wide).clamp(min=smallest).view(-1, 1, 1))


class RunningSizes:
    """The running root mean squares of the rows, or the columns, of a stack.

    Args:
        state: of each weight: views, which are written to, [count, m] or [count, n].
        like: what they are computed in.
    """

    def __init__(self, state: list[Tensor], like: Tensor) -> None:
        self._state = state
        self.now = torch.cat(state).to(like)

    def take_in(self, mean_squares: Tensor, learn: Tensor, beta: float) -> None:
        """Take the mean squares of a step in, of the matrices that ``learn``, bool [count, 1]."""
        new = factored.running_rms(self.now, mean_squares, beta=beta)
        self.now = torch.where(learn, new, self.now)
        torch._foreach_copy_(self._state, list(self.now.split(list(map(len, self._state)))))


def of_each(numbers: Sequence[Tensor], state: Sequence[Tensor]) -> Tensor:
    """A 0-dim number of each weight, for each of its matrices in a stack: [count, 1]."""
    return torch.cat([n.expand(len(own), 1) for n, own in zip(numbers, state, strict=True)])
