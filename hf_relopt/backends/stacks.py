"""Large tensors of one shape, stacked: an accelerator steps a model's matrices in a few launches.

There a kernel takes longer to launch than a matrix to step. On a CPU a matrix in pieces that fit
the cache is faster, and nothing is launched.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from hf_relopt.backends import loop
from hf_relopt.backends.batch import (
    Batch,
    Piece,
    Scalars,
    constant,
    needs_noise,
    rule_results,
)

# Entries of a stack. A rule holds up to six float32 temporaries of its size, 400 MB, at a time when
# the activations of the passes are gone.
LARGEST = 2**24


def are_worthwhile(device: torch.device) -> bool:
    """True where launching a kernel costs more than copying what it works on."""
    return device.type != "cpu"


def stacks(alike: Sequence[Hashable], sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Places of what is alike, up to ``limit`` entries together (or one place with more).

    Args:
        alike: equal where two may be stacked.
        sizes: entries of each.
    """
    kinds: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(alike):
        kinds.setdefault(kind, []).append(place)
    for places in kinds.values():
        count = max(1, limit // max(1, sizes[places[0]]))
        for first in range(0, len(places), count):
            yield places[first : first + count]


def apply(batch: Batch, indices: Sequence[int]) -> None:
    """Run the rule for the tensors at ``indices``."""
    members = [batch.params[index] for index in indices]
    alike: list[Hashable] = [
        (member.shape, batch.places[index] if needs_noise(member, batch.keys) else None)
        for index, member in zip(indices, members, strict=True)
    ]
    sizes = [member.numel() for member in members]
    for places in stacks(alike, sizes, LARGEST):
        if len(places) == 1:
            loop.apply_one(batch, indices[places[0]])
        else:
            _apply_stacked(batch, [indices[place] for place in places])


def _apply_stacked(batch: Batch, indices: Sequence[int]) -> None:
    params = [batch.params[index] for index in indices]
    buffers = [[batch.buffers[i][k] for i in indices] for k in range(len(batch.buffers[0]))]
    param, grad = torch.stack(params), torch.stack([batch.grads[index] for index in indices])
    stacked = tuple(torch.stack(tensors) for tensors in buffers)
    pick, ones = _pick(indices, param.device), [1] * params[0].dim()

    def each(values: Tensor) -> Tensor:
        return values[pick].view(-1, *ones)

    scalars = Scalars(
        {k: v if v.dim() == 0 else each(v) for k, v in batch.coefficients.items()},
        each(batch.learn),
        each(batch.move),
        None if batch.keys is None else each(batch.keys),
    )
    position = None
    if needs_noise(param, batch.keys):
        place, shape = batch.places[indices[0]], params[0].shape
        whole, first = (
            (shape, (0,) * len(shape)) if place is None else (place.whole_shape, place.first)
        )
        position = Piece((params[0],), whole, first).positions()
    results = rule_results(
        batch.update, param, grad, stacked, scalars, position, batch.constants, batch.maximize
    )
    for targets, result in zip([params, *buffers], results, strict=True):
        torch._foreach_copy_(targets, list(result.unbind()))


def _pick(indices: Sequence[int], device: torch.device) -> slice | Tensor:
    """What picks the values of ``indices``: evenly spaced ones, as layers have them, by a view."""
    first, step = indices[0], indices[1] - indices[0]
    if step > 0 and list(indices) == list(range(first, indices[-1] + 1, step)):
        return slice(first, indices[-1] + 1, step)
    return constant(tuple(indices), torch.int64, device)
