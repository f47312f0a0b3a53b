"""Gradients as matrices: those that are cut from one weight, and which of a model's are alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_relopt.backends.kernel import compute_dtype
from hf_relopt.backends.part import piece_size
from hf_relopt.backends.stacks import LARGEST, are_worthwhile, stacks

# Over what a sum has been taken.
Over = Literal["rows", "columns", "all"]
# Sums on this rank -> over all ranks, for the places of the matrices whose sums they are.
Across = Callable[[Sequence[tuple[int, Over]], list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Matrices:
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


def rounds(
    matrices: Sequence[Matrices], ways: Sequence[Hashable] = ()
) -> Iterator[list[list[int]]]:
    """Places of those that make a stack, as many stacks at once as have to be.

    What lies on several ranks goes on together; the rest one by one, for its temporaries' sake.
    Every rank passes the same matrices in the same order, all of one device.

    Args:
        ways: one for each, equal where two may be stacked; none: all are alike.
    """
    if not matrices:
        return
    ways = ways or [None] * len(matrices)
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
    """The gradients over their sizes, whose squares have room in their dtype: one stack.

    Float64 stays, all else is float32.
    """
    wide = compute_dtype(alike[0].grads.dtype)
    smallest = torch.finfo(wide).smallest_normal
    found = [each.grads.to(wide) / each.size.to(wide).clamp(min=smallest) for each in alike]
    return found[0] if len(found) == 1 else torch.cat(found)
