"""Packed numbers: the counts and anchors of all weights on a device, each kind in one tensor.

A step works on all of them at once. What ``optimizer.state`` holds of each weight are aliases of
their entries, so that nothing is stacked before a step or copied after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends.backend import PAID
from hf_relopt.sharding.layout import as_rows_of, local
from hf_relopt.sharding.matrices import world_size
from hf_relopt.step.decide import largest_grad
from hf_relopt.step.slot import Slot
from hf_relopt.step.state import OF_SLICES, has_state, widest

# A float32 counts no further, and few runs go so far.
_MOST_STEPS = 2**20


class Numbers:
    """Numbers of T slots, which have S slices together.

    Attributes:
        slots: in their order.
        step, skipped: float32 [T]: steps taken, and gradients that were not finite.
        of_slices: float32 [S] each, by name. Of anchors those are NaN that are not made yet; a
            running mean is here if a slot has one.
        number: int64 [T], the slots' places in the optimizer.
        owner: int64 [S], the slot that a slice belongs to, or None if each slot has one slice.
        numel: [S], entries of the full slice, at least 1.
        largest: [T], the norm from which on a gradient counts as not finite.
        first: the slices of slot t are those from first[t] to first[t + 1].
        groups, group: the param groups, and int64 [T], the place of each slot's.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        device = slots[0].device
        counts = [slot.slices.count for slot in slots]
        self.slots = slots
        self.step = torch.zeros(len(slots), dtype=torch.float32, device=device)
        self.skipped = torch.zeros_like(self.step)
        self.of_slices = {
            name: torch.full(
                (sum(counts),),
                torch.nan if name == "anchor_norm" else 0.0,
                dtype=torch.float32,
                device=device,
            )
            for name in OF_SLICES
            if name == "anchor_norm" or any([name in slot.method.state for slot in slots])
        }
        wide = widest(device)
        self.number = _on(device, [slot.number for slot in slots], torch.int64)
        owners = [place for place, count in enumerate(counts) for _ in range(count)]
        simple = all([count == 1 for count in counts])
        self.owner = None if simple else _on(device, owners, torch.int64)
        numels = [max(1, numel) for slot in slots for numel in slot.slices.numels]
        self.numel = _on(device, numels, wide)
        limits = [largest_grad(slot.method, slot.dtype) for slot in slots]
        self.largest = _on(device, limits, wide)
        self.first = [0]
        for count in counts:
            self.first.append(self.first[-1] + count)
        # The param groups of the slots, and which of them each has.
        places: dict[int, int] = {}
        self.groups: list[Mapping[str, Any]] = []
        for slot in slots:
            if places.setdefault(id(slot.group), len(places)) == len(self.groups):
                self.groups.append(slot.group)
        self.group = _on(device, [places[id(slot.group)] for slot in slots], torch.int64)
        self._own: dict[int, dict[str, Tensor]] = {}
        # Learning rates of the last step, and what was made of them.
        self.rates: tuple[list[float], tuple[Tensor, bool]] | None = None

    @property
    def anchor_norm(self) -> Tensor:
        """The anchors, [S]."""
        return self.of_slices["anchor_norm"]

    @cached_property
    def may_pay(self) -> bool:
        """True if enough entries may be stepped here, on a CPU, for a compilation to pay.

        Not of several processes: on one that has no compiler replicas would round otherwise.
        """
        alone = self.step.device.type == "cpu" and world_size() == 1
        return alone and self._entries * _MOST_STEPS >= PAID

    @cached_property
    def _entries(self) -> int:
        return sum(
            [
                slot.param.numel()
                for slot in self.slots
                if slot.method.direct and slot.method.options["backend"] == "auto"
            ]
        )

    def is_paid(self) -> bool:
        """True if so many have been stepped. Reads the counts, which a CPU does not wait for."""
        return self._entries * float(self.step.max()) >= PAID

    def own(self, place: int) -> dict[str, Tensor]:
        """The numbers of a slot, made once: for what takes slots one by one."""
        if place not in self._own:
            self._own[place] = self.aliases(place)
        return self._own[place]

    def aliases(self, place: int) -> dict[str, Tensor]:
        """The numbers of a slot, by the names that they have in its state."""
        slices = slice(self.first[place], self.first[place + 1])
        # Without the tie of a view: a compiler would look at what it is a view of, and what other
        # code writes to an alias counts as a change of that alone.
        found = {"step": self.step[place].data, "skipped": self.skipped[place].data}
        for name in self.slots[place].method.slice_numbers:
            found[name] = self.of_slices[name][slices].data
        return found

    def adopt(self, place: int) -> dict[str, Tensor]:
        """Make the state of a slot aliases of the numbers here, which take its values over.

        Returns: the aliases, of a DTensor its shard.
        """
        slot, mine = self.slots[place], self.aliases(place)
        if has_state(slot.state):
            for name, value in self.aliases(place).items():
                value.copy_(local(slot.state[name]).view(value.shape))
        slot.state.update(mine)
        if slot.method.scale == "row":
            for name in slot.method.slice_numbers:
                slot.state[name] = as_rows_of(slot.param, mine[name])
        return mine

    def put_back(self) -> None:
        """Nothing: these are the numbers themselves."""


class SomeNumbers(Numbers):
    """Those of some of the slots: copies, which are put back after the step.

    Attributes:
        is_view: do the slots follow each other? Then their numbers are parts of the others, and
            nothing has to be copied.
    """

    def __init__(self, all_of_them: Numbers, places: Sequence[int]) -> None:
        super().__init__([all_of_them.slots[place] for place in places])
        self._source, self._chosen = all_of_them, list(places)
        device = self.step.device
        first = all_of_them.first
        begin, end = places[0], places[-1] + 1
        self.is_view = self._chosen == list(range(begin, end))
        if self.is_view:
            self.step, self.skipped = all_of_them.step[begin:end], all_of_them.skipped[begin:end]
            own = slice(first[begin], first[end])
            self.of_slices = {name: all_of_them.of_slices[name][own] for name in self.of_slices}
            return
        slices = [n for place in places for n in range(first[place], first[place + 1])]
        self._places, self._slices = (_on(device, each, torch.int64) for each in (places, slices))

    def own(self, place: int) -> dict[str, Tensor]:
        """Those of the source: what is stepped alone is stepped before anything is copied."""
        return self._source.own(self._chosen[place])

    def fetch(self) -> None:
        """Copy the numbers as they are now."""
        if self.is_view:
            return
        torch.index_select(self._source.step, 0, self._places, out=self.step)
        torch.index_select(self._source.skipped, 0, self._places, out=self.skipped)
        for name, numbers in self.of_slices.items():
            torch.index_select(self._source.of_slices[name], 0, self._slices, out=numbers)

    def put_back(self) -> None:
        """Write the numbers where they came from."""
        if self.is_view:
            return
        self._source.step.index_copy_(0, self._places, self.step)
        self._source.skipped.index_copy_(0, self._places, self.skipped)
        for name, numbers in self.of_slices.items():
            self._source.of_slices[name].index_copy_(0, self._slices, numbers)


def _on(device: torch.device, numbers: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Numbers on a device, without waiting for it."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
