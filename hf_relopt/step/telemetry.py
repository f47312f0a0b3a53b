"""Telemetry: what a step really changes, summed on the weights around apply.

The weights of a few slots are copied, stepped and compared, all of them laid end to end. What comes
of it are a few numbers for each slot, which stay on their device until somebody reads them: a step
that is measured waits for nothing, and is read with one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_relopt.backends.codes import count_ends
from hf_relopt.backends.part import Direct, Part
from hf_relopt.lns.tensor import LNSTensor, plain
from hf_relopt.rules.rule import no_bound
from hf_relopt.sharding.layout import Layout
from hf_relopt.sharding.reduce import all_reduced
from hf_relopt.step.change import NEARLY, Before, changes
from hf_relopt.step.measured import LayerStep, Measured
from hf_relopt.step.slot import Slot
from hf_relopt.step.state import has_state, widest

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle

# Columns of what is read: |dW|^2, |W|^2 before and after, entries that changed, share at the bound,
# entries that the step was to change, those of them that it did not, of codes entries at the
# smallest level and zeros, and was the slot stepped?
_COLUMNS = 10
_COUNTS = 6


@dataclass
class Seen:
    """Some slots of a bundle, and the sums that their step has left.

    Attributes:
        learn: [T], whether a slot's gradient was usable.
        squares: |dW|^2, |W|^2 before and after. Of each slice; of rows, which no two ranks share,
            those of a slot are added up: their number differs from rank to rank.
        counts: [T, 6]: changed entries, entries at a bound of their own, or in rows that are;
            entries that were to change, those of them that did not; of weights in codes entries at
            the smallest level, and zeros.
        owner: int64 [S]: each slice's slot, where it is not the only one.
        bound: [S], |W| at which a slice is held; None for rows, which are counted already.
    """

    slots: Sequence[Slot]
    learn: Tensor
    squares: Tensor
    counts: Tensor
    owner: Tensor | None
    bound: Tensor | None

    @property
    def layout(self) -> Layout:
        """That of one of them, for the process groups."""
        return self.slots[0].layout

    def rows(self, whole: Tensor) -> Tensor:
        """[T, _COLUMNS] of the sums over all ranks, as they were flattened."""
        size = len(self.slots)
        squares = whole[: self.squares.numel()].view(-1, 3)
        counts = whole[self.squares.numel() :].view(size, _COUNTS)
        numels = [max(1, slot.layout.shape.numel()) for slot in self.slots]
        held = counts[:, 1] / _on(counts, numels)
        if self.bound is not None:
            is_held = (squares[:, 2].sqrt() >= NEARLY * self.bound).to(held.dtype)
            per_slot = _add_up(is_held.unsqueeze(1), self.owner, size)[:, 0]
            slices = _on(counts, [slot.slices.count for slot in self.slots]).clamp(min=1)
            held = torch.maximum(held, per_slot / slices)
            squares = _add_up(squares, self.owner, size)
        learn = self.learn.to(held.dtype)
        columns = [*squares.unbind(1), counts[:, 0], held, *counts[:, 2:].unbind(1), learn]
        return torch.stack(columns, dim=1)


class Measurement:
    """Sums over one step; costs copies of a few tensors at a time, and no synchronisation."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._all: Sequence[Slot] = ()
        # What is to be read, the slots that were measured, and those with a count of their own.
        self._tables: list[tuple[Tensor, list[Slot], list[Slot]]] = []

    @property
    def empty(self) -> bool:
        """True until a step has been measured."""
        return not self._seen

    def apply(
        self,
        bundle: Bundle,
        parts: Sequence[Part],
        learn: Tensor,
        move: Tensor,
        update: Callable[[Sequence[Part]], None],
    ) -> None:
        """Let ``update`` step all parts of a bundle, some slots at a time, and see what changes.

        Args:
            learn: [T], whether a slot's gradient is usable.
            move: [S], whether a slice may change.
        """
        at = 0
        for first, last in _at_once(bundle):
            count = sum(map(len, bundle.views[first:last]))
            own = parts[at : at + count]
            before = Before(_in_numbers(own))
            update(own)
            begin, end = (bundle.numbers.first[bundle.begin + place] for place in (first, last))
            anchors = bundle.numbers.anchor_norm[begin:end]
            seen = _seen(bundle, first, last, own, before, anchors, learn[first:last], move)
            self._seen.append(seen)
            at += count

    def alone(
        self, bundle: Bundle, place: int, work: Direct, step: Callable[[Direct], list[int]]
    ) -> bool:
        """The same for one slot that a backend takes from its sums to the new weights.

        Args:
            step: the backend's; it returns the places of what it has left.
        """
        state = bundle.numbers.own(bundle.begin + place)
        taken, parts = state["step"], list(work.parts)
        before, steps = Before(parts), taken.clone()
        if step(work):
            return False
        learn = (taken != steps).view(1)
        # As of the whole bundle, of which the part's view knows its place.
        move = (learn & (work.lr != 0)).expand(place + 1)
        # Numbers of some of the slots are copies, which do not hold a fresh anchor yet.
        anchors = state.get("anchor_norm", taken.new_zeros(())).view(1)
        seen = _seen(bundle, place, place + 1, parts, before, anchors, learn, move)
        self._seen.append(seen)
        return True

    def finish(self, slots: Sequence[Slot]) -> None:
        """Add up over shards, once: every rank has to measure the same step.

        Args:
            slots: all of the optimizer's.
        """
        self._all = slots
        # All ranks have these slots in this order.
        self._seen.sort(key=lambda seen: seen.slots[0].number)
        flat = [torch.cat([s.squares.reshape(-1), s.counts.reshape(-1)]) for s in self._seen]
        whole = all_reduced(flat, [seen.layout for seen in self._seen])
        by_device: dict[torch.device, list[tuple[Seen, Tensor]]] = {}
        for seen, own in zip(self._seen, whole, strict=True):
            by_device.setdefault(seen.slots[0].device, []).append((seen, own))
        for device, each in by_device.items():
            measured = [slot for seen, _ in each for slot in seen.slots]
            counted = [slot for slot in slots if slot.device == device and has_state(slot.state)]
            skipped = torch.stack([slot.state["skipped"] for slot in counted])
            rows = [seen.rows(own).reshape(-1) for seen, own in each]
            table = torch.cat([*rows, skipped.to(rows[0].dtype)])
            self._tables.append((table, measured, counted))

    def read(self) -> Measured:
        """What was measured; waits for the device, which is read by one copy."""
        found: dict[int, list[float]] = {}
        skipped: dict[int, int] = {}
        for table, measured, counted in self._tables:
            numbers = table.tolist()
            for place, slot in enumerate(measured):
                found[slot.number] = numbers[place * _COLUMNS : (place + 1) * _COLUMNS]
            for slot, count in zip(counted, numbers[len(measured) * _COLUMNS :], strict=True):
                skipped[slot.number] = int(count)
        layers = [_layer(s, found.get(s.number), skipped.get(s.number, 0)) for s in self._all]
        return Measured(tuple(layers))


def _at_once(bundle: Bundle) -> Iterator[tuple[int, int]]:
    """Cut a bundle's slots so that few copies exist at a time; every rank cuts alike."""
    on_cpu = bundle.first.device.type == "cpu"
    most = 2**20 if on_cpu else 2**26  # a CPU's caches, or few launches
    begin, entries = 0, 0
    for place, slot in enumerate(bundle.slots):
        numel = -(-slot.layout.shape.numel() // slot.layout.shards)
        if place > begin and entries + numel > most:
            yield begin, place
            begin, entries = place, 0
        entries += numel
    yield begin, len(bundle.slots)


def _seen(
    bundle: Bundle,
    first: int,
    last: int,
    parts: Sequence[Part],
    before: Before,
    anchors: Tensor,
    learn: Tensor,
    move: Tensor,
) -> Seen:
    """What the step of the slots from ``first`` to ``last`` of a bundle has changed."""
    slots, numbers, method = bundle.slots[first:last], bundle.numbers, bundle.method
    begin, end = (numbers.first[bundle.begin + place] for place in (first, last))
    device, wide = bundle.first.device, widest(bundle.first.device)
    owner = None
    if end - begin != len(slots) or any([slot.slices.count != 1 for slot in slots]):
        assert numbers.owner is not None
        owner = numbers.owner[begin:end] - (bundle.begin + first)
    anchors = anchors.to(wide)
    bound = no_bound(anchors)
    if method.rule.anchored:
        bound = method.rule.largest_norm(anchors, method.options)
    squares = torch.zeros(end - begin, 3, dtype=wide, device=device)
    counts = torch.zeros(len(slots), _COUNTS, dtype=wide, device=device)
    if parts:
        views = [len(own) for own in bundle.views[first:last]]
        entry_bound = None
        if method.rule.largest_entry is not no_bound:
            entry_bound = _entry_bounds(bundle, slots, anchors)
        found = changes(_in_numbers(parts), before, move, anchors, entry_bound)
        squares, counts[:, :4] = found[0].to(wide), _per_slot(found[1].to(wide), views)
        if method.in_codes:
            weights = [part.weight for part in parts if isinstance(part.weight, LNSTensor)]
            ends = torch.stack(list(map(count_ends, weights))).to(wide)
            counts[:, 1], counts[:, 4:] = ends[:, 0], ends[:, 1:]
    if method.scale != "row":
        return Seen(slots, learn, squares, counts, owner, bound)
    lengths = numbers.numel[begin:end]
    held = (squares[:, 2].sqrt() >= NEARLY * bound) * lengths
    counts[:, 1] = _add_up(held.to(wide).unsqueeze(1), owner, len(slots))[:, 0]
    return Seen(slots, learn, _add_up(squares, owner, len(slots)), counts, None, None)


def _in_numbers(parts: Sequence[Part]) -> list[Part]:
    """Parts whose weights are numbers: codes are decoded."""
    return [part._replace(weight=plain(part.weight)) for part in parts]


def _entry_bounds(bundle: Bundle, slots: Sequence[Slot], anchors: Tensor) -> Tensor:
    """The largest entry of each slot; such rules step full tensors."""
    method = bundle.method
    each = zip(anchors.unbind(), slots, strict=True)
    found = [
        method.rule.largest_entry(anchor, slot.layout.shape.numel(), method.options)
        for anchor, slot in each
    ]
    return torch.stack(found)


def _per_slot(rows: Tensor, parts: Sequence[int]) -> Tensor:
    """Rows of slots from those of their parts."""
    if all([count == 1 for count in parts]):
        return rows
    return torch.stack([own.sum(dim=0) for own in rows.split(parts)])


def _add_up(rows: Tensor, owner: Tensor | None, size: int) -> Tensor:
    """Rows of slots from those of their slices."""
    return rows if owner is None else rows.new_zeros(size, rows.size(1)).index_add_(0, owner, rows)


def _on(like: Tensor, numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype).to(like.device, non_blocking=True)


def _layer(slot: Slot, row: Sequence[float] | None, skipped: int) -> LayerStep:
    """A slot's numbers in words; of one that took no part, nothing but its name."""
    own = row or [0.0] * _COLUMNS
    moved, before, after, changed, at_bound, wanted, stuck, smallest, zero, stepped = own
    entries = max(1, slot.layout.shape.numel())
    return LayerStep(
        slot=slot,
        measured=row is not None,
        stepped=bool(stepped),
        update_norm=moved**0.5,
        norm_before=before**0.5,
        norm=after**0.5,
        changed=changed,
        at_bound=at_bound,
        followed=wanted,
        unchanged=stuck,
        skipped=skipped,
        at_smallest=smallest / entries,
        at_zero=zero / entries,
    )
