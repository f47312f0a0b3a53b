"""The lineup of a step: bundles of the slots that take part, resolved once.

Slots of one method, dtype and device are a bundle: a backend works on all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from functools import cached_property
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hf_relopt.step.bundle import Bundle
from hf_relopt.step.numbers import Numbers, SomeNumbers
from hf_relopt.step.portions import joints, portions
from hf_relopt.step.slot import Slot, in_bundles, refuse_gradient, slot_of
from hf_relopt.step.state import has_state, new_buffers

# Lineups that are kept, since mixtures of experts change who has a gradient from step to step.
_MOST = 64
# Asked of every weight in every step, where a function of ours would take longer than a sum.
_SIGNED = attrgetter("shape", "dtype", "device")
_VERSION = attrgetter("_version")


class Lineup:
    """The slots that take part in a step, in bundles.

    Args:
        numbers: the packed numbers of each device.
        paid: devices on which enough has been stepped, see ``backend_of``.

    Attributes:
        numbers: the packed numbers of each device.
        bundles: sharded ones are in the same order on every rank.
        direct, directed: those that follow their gradients, and all others, which are stepped in
            ``portions``.
        alone: does a backend take some of them from their sums to the new weights?
        sharded: those whose weights are sharded.
    """

    def __init__(self, numbers: Sequence[Numbers], paid: Collection[torch.device] = ()) -> None:
        self.numbers = numbers
        self.bundles: list[Bundle] = []
        for each in numbers:
            begin = 0
            for slots in in_bundles(each.slots):
                own = slots[0].device in paid
                self.bundles.append(Bundle(each, begin, begin + len(slots), own))
                begin += len(slots)
        self.direct = joints([each for each in self.bundles if each.method.direct])
        self.directed = [bundle for bundle in self.bundles if not bundle.method.direct]
        self.portions = portions(self.directed)
        self.sharded = [bundle for bundle in self.bundles if bundle.layout.sharded]
        self.alone = [
            bundle
            for bundle in self.bundles
            if bundle.method.direct and bundle.backend.step_alone and not bundle.layout.sharded
        ]
        self.on_devices = [
            (each, [bundle for bundle in self.bundles if bundle.numbers is each])
            for each in numbers
        ]
        self.copies = [each for each in numbers if isinstance(each, SomeNumbers)]
        self.members = frozenset([slot.number for each in numbers for slot in each.slots])


class Slots:
    """All slots of an optimizer, made once: in the first step, and whenever something has changed.

    Args:
        param_groups, state: the optimizer's own. Of a weight that has no state yet there is some
            once it takes part in a step.
        before: those that were made before something changed.
    """

    # Tensors that are made inside of inference mode could not be written to outside of it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        param_groups: Sequence[Mapping[str, Any]],
        state: MutableMapping[Tensor, Any],
        before: Slots | None = None,
    ) -> None:
        self._groups, self._state = list(param_groups), state
        members = [(group, param) for group in param_groups for param in group["params"]]
        self._params = [param for _, param in members]
        self._lazy = any(map(is_lazy, self._params))
        self._signature = [] if self._lazy else list(map(_SIGNED, self._params))
        self.all = [
            slot_of(number, param, group, state.get(param, {}))
            for number, (group, param) in enumerate(members)
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
            slot.number: (each, place)
            for each in self._numbers
            for place, slot in enumerate(each.slots)
        }
        self._lineups: dict[tuple[int, ...], Lineup] = {}
        self._of_some: dict[tuple[int, ...], Lineup] = {}
        self._unpaid = [each for each in self._numbers if each.may_pay]
        self._paid: set[torch.device] = set()
        # Numbers mean the same weights as before unless somebody has changed their order.
        known = before is not None and all(map(is_, before._params, self._params))
        anchored = before._still_anchored(self.all) if before and known else set()
        self._from_zero: set[int] = set(before._from_zero) if before and known else set()
        self._unanchored = {
            slot.number for slot in self.all if slot.method.rule.anchored
        } - anchored
        self._without_state: set[int] = {slot.number for slot in self.all}
        # The weights that have state, what it is in, and each tensor that should be there.
        self._adopted: dict[Tensor, dict[str, Tensor]] = {}
        self._kept: list[tuple[dict[str, Tensor], str, Tensor]] = []
        # Aliases of packed numbers, where they lie, and how often they were written to; anchors as
        # the state shows them, which are DTensors for sharded rows.
        self._steps: list[Tensor] = []
        self._pointers: list[int] = []
        self._anchors: list[Tensor] = []
        self._shown: list[Tensor] = []
        self._versions: list[int] = []
        self._adopt([slot for slot in self.all if has_state(slot.state)])

    def are_current(
        self, param_groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Any]
    ) -> bool:
        """True if groups, weights and state are the objects that these slots were made for."""
        params: list[Tensor] = []
        for group in param_groups:
            params += group["params"]
        same = len(params) == len(self._params) and all(map(is_, params, self._params))
        same &= state is self._state and all(map(is_, param_groups, self._groups))
        if self._lazy or not same or list(map(_SIGNED, params)) != self._signature:
            return False
        if not all(map(is_, map(state.get, self._adopted), self._adopted.values())):
            return False
        # Other code may have given an alias another storage, or written to an anchor.
        if list(map(Tensor.data_ptr, self._steps)) != self._pointers:
            return False
        if list(map(_VERSION, self._anchors)) != self._versions:
            return False
        return all([own.get(name) is tensor for own, name, tensor in self._kept])

    def taking_part(
        self, beside: Collection[int] = (), only: Collection[int] | None = None
    ) -> Lineup:
        """The slots that are stepped: with a gradient, or sharded with one on another rank maybe.

        Which weights take part in a collective must not depend on what one rank has seen.

        Args:
            beside: numbers of slots to leave out.
            only: numbers of the slots that may take part, all of them with a gradient; None for
                all of the optimizer's.

        Raises:
            ConfigError: a gradient is sparse or complex.
        """
        self._note_what_is_paid()
        slots = self.all
        if only is not None:
            chosen = map(self._homes.__getitem__, sorted(set(only).difference(beside)))
            slots = [numbers.slots[place] for numbers, place in chosen]
        absent: list[int] = []
        for slot in slots:
            grad = slot.param.grad
            if grad is not None:
                if grad.layout is not torch.strided or grad.is_complex():
                    refuse_gradient(slot)
            elif not slot.layout.sharded or not slot.param.requires_grad:
                absent.append(slot.number)
        absent += beside
        if self._without_state:
            fresh = self._without_state.difference(absent)
            self._adopt([slot for slot in slots if slot.number in fresh])
        if only is not None:
            return self._lineup_of(tuple([slot.number for slot in slots]))
        key = tuple(absent)
        if key not in self._lineups:
            if len(self._lineups) >= _MOST:
                self._lineups.clear()
            self._lineups[key] = self._lineup_without(set(absent))
        return self._lineups[key]

    def _note_what_is_paid(self) -> None:
        """Take what pays in long runs, once it has: by the counts, so that a resumed run agrees."""
        for numbers in list(self._unpaid):
            if numbers.is_paid():
                self._unpaid.remove(numbers)
                self._paid.add(numbers.step.device)
                self._lineups.clear()
                self._of_some.clear()

    def _lineup_of(self, numbers: tuple[int, ...]) -> Lineup:
        """That of a few slots. All of these are kept: each comes once in every step."""
        if numbers not in self._of_some:
            self._of_some[numbers] = self._lineup_without(set(self._homes).difference(numbers))
        return self._of_some[numbers]

    def numbers_of(self, params: Iterable[Tensor]) -> list[int]:
        """The slots' numbers of some weights, as far as they have one."""
        return [self._number_of[param] for param in params if param in self._number_of]

    @cached_property
    def _number_of(self) -> dict[Tensor, int]:
        return {slot.param: slot.number for slot in self.all}

    def are_anchored(self, bundle: Bundle) -> bool:
        """True if all anchors of a bundle are known to be made."""
        return self._unanchored.isdisjoint(bundle.members)

    def may_start_at_zero(self, bundle: Bundle) -> bool:
        """True unless it is known that no weight of the bundle started at zero."""
        return not (self._unanchored | self._from_zero).isdisjoint(bundle.members)

    def note_anchors(self, lineup: Lineup) -> None:
        """Remember on the host which anchors are made: waits for the device if some were not."""
        if self._unanchored.isdisjoint(lineup.members):
            return
        for numbers in self._numbers:
            if numbers.anchor_norm.is_meta:
                continue
            anchors = numbers.anchor_norm.tolist()
            for place, slot in enumerate(numbers.slots):
                own = anchors[numbers.first[place] : numbers.first[place + 1]]
                if not any(map(math.isnan, own)):
                    self._unanchored.discard(slot.number)
                    if 0 in own:
                        self._from_zero.add(slot.number)

    def _still_anchored(self, slots: Sequence[Slot]) -> set[int]:
        """Numbers of those new ``slots`` whose anchors are known here to be made."""
        now = list(map(_VERSION, self._anchors))
        each = zip(self._shown, now, self._versions, strict=True)
        as_before = {id(anchor) for anchor, version, before in each if version == before}
        found = {slot.number for slot in slots if id(slot.state.get("anchor_norm")) in as_before}
        return found - self._unanchored

    @torch.inference_mode(False)
    @torch.no_grad()
    def _lineup_without(self, absent: Collection[int]) -> Lineup:
        chosen: list[Numbers] = []
        for numbers in self._numbers:
            places = [t for t, slot in enumerate(numbers.slots) if slot.number not in absent]
            if len(places) == len(numbers.slots):
                chosen.append(numbers)
            elif places:
                chosen.append(SomeNumbers(numbers, places))
        return Lineup(chosen, self._paid)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _adopt(self, slots: Iterable[Slot]) -> None:
        """Give slots their state, or take over what they have."""
        for slot in slots:
            own = self._state.get(slot.param)
            if own is None:
                self._state[slot.param] = slot.state
            elif own is not slot.state:
                slot.state = own  # somebody has put something there meanwhile
            if not has_state(slot.state):
                slot.state.update(new_buffers(slot.method, slot.param))
            numbers, place = self._homes[slot.number]
            aliases = numbers.adopt(place)
            self._steps.append(aliases["step"])
            self._pointers.append(aliases["step"].data_ptr())
            if "anchor_norm" in aliases:
                self._anchors.append(aliases["anchor_norm"])
                self._shown.append(slot.state["anchor_norm"])
                self._versions.append(_VERSION(aliases["anchor_norm"]))
            self._without_state.discard(slot.number)
            self._adopted[slot.param] = slot.state
            self._kept += [(slot.state, name, slot.state[name]) for name in slot.method.state]
