"""Large parts of one shape, stacked: an accelerator steps a model's matrices in a few launches.

There a kernel takes longer to launch than a matrix to step. On a CPU a matrix in pieces that fit
the cache is faster, and nothing is launched.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hf_relopt.backends import loop
from hf_relopt.backends.kernel import columns_of, results
from hf_relopt.backends.part import Decision, Equation, Part, Piece, View

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


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as [count, ...]: a view if they lie one after the other, else a copy."""
    first = tensors[0]
    if len(tensors) == 1:
        return first.unsqueeze(0)
    found = _as_they_lie(tensors, [1] * len(tensors), first.shape, first.stride())
    return torch.stack(list(tensors)) if found is None else found


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors [count, ...] as one: a view where they lie one after the other, else a copy."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    counts = list(map(len, tensors))
    found = _as_they_lie(tensors, counts, first.shape[1:], first.stride()[1:])
    return torch.cat(list(tensors)) if found is None else found


def _as_they_lie(
    tensors: Sequence[Tensor], counts: Sequence[int], shape: torch.Size, strides: tuple[int, ...]
) -> Tensor | None:
    """One view of tensors that have so many entries each along what is its first dimension.

    Args:
        shape, strides: of such an entry of the first tensor.
    """
    first, size = tensors[0], tensors[0].element_size()
    begin, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    gap, left = divmod(tensors[1].data_ptr() - begin, size * max(1, counts[0]))
    if left or gap <= 0:
        return None
    place = 0
    for each, count in zip(tensors, counts, strict=True):
        if each.data_ptr() != begin + place * gap * size:
            return None
        own = each.stride()
        if own[len(own) - len(strides) :] != strides or (count > 1 and own[0] != gap):
            return None
        if each.untyped_storage().data_ptr() != storage:
            return None
        place += count
    return first.as_strided((place, *shape), (gap, *strides))


def update(parts: Sequence[Part], equation: Equation, decision: Decision) -> None:
    """Step every part in place."""
    views = [part.view for part in parts]
    noisy = decision.keys is not None
    alike = [
        (view.shape, view.count, (view.origin, view.strides) if noisy else None) for view in views
    ]
    for places in stacks(alike, [view.numel for view in views], LARGEST):
        if len(places) == 1:
            loop.update_one(parts[places[0]], equation, decision)
        else:
            _update_stack([parts[place] for place in places], equation, decision, noisy)


def _update_stack(
    parts: Sequence[Part], equation: Equation, decision: Decision, noisy: bool
) -> None:
    columns = columns_of(parts)
    view = parts[0].view
    pick = _pick(tuple([part.view for part in parts]), parts[0].weight.device)
    shape = (len(parts), view.count, *[1] * (len(view.shape) - 1))
    if view.count == 1:
        shape = (len(parts), *[1] * len(view.shape))

    def each(values: Tensor) -> Tensor:
        return values if values.dim() == 0 else values[pick].view(shape)

    decided = Decision(
        {name: each(values) for name, values in decision.coefficients.items()},
        each(decision.learn),
        each(decision.move),
        None if decision.keys is None else each(decision.keys),
    )
    position = None
    if noisy:
        one = Piece((parts[0].weight,), view.first, view.count, view.origin, view.strides)
        position = one.positions()
    stacked = tuple([torch.stack(column) for column in columns])
    new = results(stacked, equation, decided, position)
    for targets, result in zip([columns[0], *columns[2:]], new, strict=True):
        torch._foreach_copy_(targets, list(result.unbind()))


@lru_cache(maxsize=1024)  # the same in each step
def _pick(views: tuple[View, ...], device: torch.device) -> slice | Tensor:
    """What picks the numbers of stacked parts: evenly spaced ones, as layers have, by a view."""
    firsts, count = tuple([view.first for view in views]), views[0].count
    step = firsts[1] - firsts[0]
    if count == 1 and step > 0 and firsts == tuple(range(firsts[0], firsts[-1] + 1, step)):
        return slice(firsts[0], firsts[-1] + 1, step)
    places = [first + number for first in firsts for number in range(count)]
    return torch.tensor(places, dtype=torch.int64).to(device, non_blocking=True)
