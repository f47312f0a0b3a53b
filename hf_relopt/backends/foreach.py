"""Small parts laid end to end and stepped together; large ones in pieces, or stacked.

A model has many small weights (biases, norm weights), and each would cost as many kernel launches
as a large one. Laid end to end, with their numbers repeated per entry, they are one long tensor to
the rule, so the equation is the same code in every backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

import torch
from torch import Tensor

from hf_relopt.backends import loop, stacks
from hf_relopt.backends.kernel import columns_of, results
from hf_relopt.backends.part import Decision, Equation, Part, View, piece_size

_VIEW = attrgetter("view")


def update(parts: Sequence[Part], equation: Equation, decision: Decision) -> None:
    """Step every part in place."""
    device, noisy = parts[0].weight.device, decision.keys is not None
    arranged = _arrange(tuple(map(_VIEW, parts)), device, noisy)
    if arranged.large:
        large = list(map(parts.__getitem__, arranged.large))
        if stacks.are_worthwhile(device):
            stacks.update(large, equation, decision)
        else:
            loop.update(large, equation, decision)
    for run in arranged.runs:
        _update_run(run, list(map(parts.__getitem__, run.places)), equation, decision)


def small_size(device: torch.device) -> int:
    """Entries up to which parts are laid end to end: copying costs less than own kernels."""
    return 2**15 if device.type == "cpu" else 2**18


@dataclass(frozen=True)
class Run:
    """Parts that are laid end to end.

    Attributes:
        places: of the parts among all that are stepped.
        slices: picks their slices' numbers: a range, or the index of each.
        lengths: int64, entries of each of these slices.
        starts: int64, where each slice begins, less the position of its first entry.
        numel: entries of all.
    """

    places: tuple[int, ...]
    slices: slice | Tensor
    lengths: Tensor
    starts: Tensor
    numel: int


@dataclass(frozen=True)
class Arrangement:
    """Which parts are stepped how."""

    large: tuple[int, ...]
    runs: tuple[Run, ...]


@lru_cache(maxsize=256)  # the same in each step, and its tensors take longer to make than to use
def _arrange(views: tuple[View, ...], device: torch.device, noisy: bool) -> Arrangement:
    limit = small_size(device)
    large: list[int] = []
    small: list[int] = []
    for place, view in enumerate(views):
        # Without a run there is no counting on from a first position, by which noise is drawn.
        together = view.numel <= limit and (view.in_one_run or not noisy)
        (small if together else large).append(place)
    runs = [_run(views, places, device) for places in _in_runs(views, small, piece_size(device))]
    return Arrangement(tuple(large), tuple(runs))


def _in_runs(views: Sequence[View], places: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Split ``places`` so that each run holds at most one piece's worth of entries."""
    run: list[int] = []
    entries = 0
    for place in places:
        if run and entries + views[place].numel > limit:
            yield run
            run, entries = [], 0
        run.append(place)
        entries += views[place].numel
    if run:
        yield run


def _run(views: Sequence[View], places: Sequence[int], device: torch.device) -> Run:
    lengths: list[int] = []
    slices: list[int] = []
    starts: list[int] = []
    begin = 0
    for place in places:
        view = views[place]
        each = view.numel // view.count
        for number in range(view.count):
            lengths.append(each)
            slices.append(view.first + number)
            starts.append(begin - (view.origin + number * each))
            begin += each
    whole = slices == list(range(slices[0], slices[0] + len(slices)))
    pick = slice(slices[0], slices[0] + len(slices)) if whole else _on(slices, device)
    return Run(tuple(places), pick, _on(lengths, device), _on(starts, device), begin)


def _on(numbers: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def _update_run(run: Run, parts: Sequence[Part], equation: Equation, decision: Decision) -> None:
    if len(parts) == 1:
        loop.update(parts, equation, decision)
        return
    columns = columns_of(parts)
    flat = tuple(map(end_to_end, columns))
    # output_size spares repeat_interleave a look at the lengths from the host.
    owner = torch.repeat_interleave(run.lengths, output_size=run.numel)
    position = None
    if decision.keys is not None:
        counted = torch.arange(run.numel, device=owner.device)
        position = (counted - run.starts[owner]).to(torch.int32)
    new = results(flat, equation, _spread(decision, run.slices, owner), position)
    for targets, result in zip([columns[0], *columns[2:]], new, strict=True):
        torch._foreach_copy_(targets, apart(result, targets))


def _spread(decision: Decision, slices: slice | Tensor, owner: Tensor) -> Decision:
    """Numbers per slice become numbers per entry."""
    coefficients = dict(decision.coefficients)
    for name, values in coefficients.items():
        if values.dim() > 0:
            coefficients[name] = values[slices].index_select(0, owner)
    learn = decision.learn[slices].index_select(0, owner)
    move = (
        learn if decision.move is decision.learn else decision.move[slices].index_select(0, owner)
    )
    keys = None if decision.keys is None else decision.keys[slices].index_select(0, owner)
    return Decision(coefficients, learn, move, keys)


def end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    """All entries of ``tensors`` in one dimension, as a copy."""
    return torch.cat(list(map(torch.ravel, tensors)))


def apart(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat`` in the shapes of the tensors that were laid end to end in it."""
    parts = flat.split(list(map(Tensor.numel, like)))
    return list(map(Tensor.view_as, parts, like))
