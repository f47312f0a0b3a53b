"""The lineup of a step: all slots of an optimizer, resolved once, and those that take part."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hf_relopt.step.bundle import Bundle, in_bundles
from hf_relopt.step.numbers import Numbers, SomeNumbers
from hf_relopt.step.slot import Slot, slot_of
from hf_relopt.step.state import has_state, new_buffers

# Lineups that are kept, since mixtures of experts change who has a gradient from step to step.
_MOST = 64


class Lineup:
    """The slots that take part in a step, in bundles.

    Attributes:
        numbers: the packed numbers of each device.
        bundles: sharded ones are in the same order on every rank.
    """

    def __init__(self, numbers: Sequence[Numbers]) -> None:
        self.numbers = numbers
        self.bundles: list[Bundle] = []
        for each in numbers:
            begin = 0
            for slots in in_bundles(each.slots):
                self.bundles.append(Bundle(each, begin, begin + len(slots)))
                begin += len(slots)


class Slots:
    """All slots of an optimizer, made once: in the first step, and whenever something has changed.

    Args:
        param_groups, state: the optimizer's own. Of a weight that has no state yet there is some
            once it takes part in a step.
        before: those that were made before something changed.

    Attributes:
        anchored: numbers of the slots whose anchors are known to be made.
    """

    def __init__(
        self,
        param_groups: Sequence[Mapping[str, Any]],
        state: MutableMapping[Tensor, Any],
        before: Slots | None = None,
    ) -> None:
        self._groups, self._state = param_groups, state
        self._params = [param for group in param_groups for param in group["params"]]
        self._lazy = any(map(is_lazy, self._params))
        self._signature = [] if self._lazy else self._signed()
        self.all = [
            slot_of(number, param, group, state[param] if param in state else {})
            for number, (group, param) in enumerate(
                (group, param) for group in param_groups for param in group["params"]
            )
            if not is_lazy(param)
        ]
        by_device: dict[torch.device, list[Slot]] = {}
        for slot in self.all:
            by_device.setdefault(slot.device, []).append(slot)
        self._numbers = [
            Numbers([slot for bundle in in_bundles(own) for slot in bundle])
            for own in by_device.values()
        ]
        self._homes = {
            slot.number: (numbers, place)
            for numbers in self._numbers
            for place, slot in enumerate(numbers.slots)
        }
        self._lineups: dict[tuple[int, ...], Lineup] = {}
        self.anchored = set() if before is None else before.still_anchored(self.all)
        self._without_state: set[int] = {slot.number for slot in self.all}
        # What is kept of each slot: state dict, name, tensor.
        self._kept: tuple[list[dict[str, Tensor]], list[str], list[Tensor]] = ([], [], [])
        self._adopt([slot for slot in self.all if has_state(slot.state)])

    def are_current(self) -> bool:
        """Are weights and state still the tensors that these slots were made for?"""
        params = [param for group in self._groups for param in group["params"]]
        if self._lazy or len(params) != len(self._params) or not all(map(is_, params, self._params)):
            return False
        states, names, tensors = self._kept
        return (
            self._signed() == self._signature
            and all(map(is_, [each.get(name) for each, name in zip(states, names)], tensors))
            and len(self._state) >= len(self.all) - len(self._without_state)
        )

    def still_anchored(self, slots: Sequence[Slot]) -> set[int]:
        """Numbers of those ``slots`` whose anchors are known here to be made."""
        states, names, tensors = self._kept
        anchors = {
            id(each): tensor
            for each, name, tensor in zip(states, names, tensors, strict=True)
            if name == "anchor_norm"
        }
        return {
            slot.number
            for slot in slots
            if slot.number in self.anchored
            and slot.state
            and slot.state.get("anchor_norm") is anchors.get(id(slot.state))
        }

    def taking_part(self, beside: Collection[int] = ()) -> Lineup:
        """The slots that are stepped: with a gradient, or sharded with one on another rank maybe.

        Which weights take part in a collective must not depend on what one rank has seen.

        Args:
            beside: numbers of slots to leave out.
        """
        absent = [
            slot.number
            for slot in self.all
            if (slot.param.grad is None and not (slot.layout.sharded and slot.param.requires_grad))
            or slot.number in beside
        ]
        if self._without_state:
            fresh = self._without_state.difference(absent)
            self._adopt([slot for slot in self.all if slot.number in fresh])
        key = tuple(absent)
        if key not in self._lineups:
            if len(self._lineups) >= _MOST:
                self._lineups.clear()
            self._lineups[key] = self._lineup_without(set(absent))
        return self._lineups[key]

    def note_anchors(self, lineup: Lineup) -> None:
        """Remember on the host which anchors are made; waits for the device if some were not."""
        for numbers in lineup.numbers:
            asked = [
                place
                for place, slot in enumerate(numbers.slots)
                if slot.number not in self.anchored and slot.needs_norm_for_anchor
            ]
            if asked and not numbers.anchor_norm.is_meta:
                made = (~numbers.anchor_norm.isnan()).tolist()
                self.anchored.update(
                    numbers.slots[place].number
                    for place in asked
                    if all(made[numbers.first[place] : numbers.first[place + 1]])
                )

    def are_anchored(self, bundle: Bundle) -> bool:
        """Are all anchors of a bundle known to be made?"""
        return self.anchored.issuperset(bundle.members)

    def _signed(self) -> list[tuple[Any, ...]]:
        return [(param.shape, param.dtype, param.device) for param in self._params]

    def _lineup_without(self, absent: Collection[int]) -> Lineup:
        chosen: list[Numbers] = []
        for numbers in self._numbers:
            places = [
                place for place, slot in enumerate(numbers.slots) if slot.number not in absent
            ]
            if len(places) == len(numbers.slots):
                chosen.append(numbers)
            elif places:
                chosen.append(SomeNumbers(numbers, places))
        return Lineup(chosen)

    def _adopt(self, slots: Iterable[Slot]) -> None:
        """Give slots their state, or take over what they have."""
        states, names, tensors = self._kept
        for slot in slots:
            own = self._state.get(slot.param)
            if own is None:
                self._state[slot.param] = slot.state
            elif own is not slot.state:
                slot.state = own  # somebody has put something there meanwhile
            if not has_state(slot.state):
                slot.state.update(new_buffers(slot.method, slot.param))
            numbers, place = self._homes[slot.number]
            numbers.adopt(place)
            self._without_state.discard(slot.number)
            for name in slot.method.state:
                states.append(slot.state)
                names.append(name)
                tensors.append(slot.state[name])
