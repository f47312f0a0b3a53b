"""Bundles: slots of one method, dtype and device, which a backend works on at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter

import torch
from torch import Tensor

from hf_relopt.backends.backend import Backend, backend_of, backend_of_codes
from hf_relopt.backends.part import Equation, Part, View
from hf_relopt.options.method import Method
from hf_relopt.plans.roles import is_vector
from hf_relopt.sharding.layout import Layout, local
from hf_relopt.step.numbers import Numbers
from hf_relopt.step.slot import Slot

_GRAD = attrgetter("grad")
# What a slot follows: a tensor of the shape of its shard, or what each of its views has of it.
Source = Tensor | list[Tensor]


@dataclass(frozen=True, eq=False)
class Bundle:
    """Slots of one method, dtype, device and kind of layout, and their packed numbers.

    Attributes:
        numbers: of all slots on the device.
        begin, end: the slots are ``numbers.slots[begin:end]``.
        paid: see ``backend_of``.
    """

    numbers: Numbers
    begin: int
    end: int
    paid: bool = False

    @cached_property
    def slots(self) -> Sequence[Slot]:
        """The slots, by their numbers."""
        return self.numbers.slots[self.begin : self.end]

    @cached_property
    def members(self) -> frozenset[int]:
        """The slots' numbers in the optimizer."""
        return frozenset([slot.number for slot in self.slots])

    @cached_property
    def first(self) -> Slot:
        """One of them, for what they have in common."""
        return self.slots[0]

    @cached_property
    def method(self) -> Method:
        """What all of them follow."""
        return self.first.method

    @cached_property
    def layout(self) -> Layout:
        """That of one of them: all are sharded over the same process groups, or none is."""
        return self.first.layout

    @cached_property
    def backend(self) -> Backend:
        """What runs their arithmetic."""
        name, paid = self.method.options["backend"], self.paid and self.method.direct
        if self.method.in_codes:
            return backend_of_codes(name, paid)
        return backend_of(name, self.first.device, self.first.dtype, paid)

    @cached_property
    def equation(self) -> Equation:
        """The rule's. Where a direction is followed, it ascends already."""
        ascends = self.method.direct and self.method.options["maximize"]
        return Equation(self.method.rule.update, self.method.constants, ascends)

    @cached_property
    def places(self) -> slice:
        """Picks the slots' numbers."""
        return slice(self.begin, self.end)

    @cached_property
    def slices(self) -> slice:
        """Picks the numbers of their slices."""
        return slice(self.numbers.first[self.begin], self.numbers.first[self.end])

    @cached_property
    def owner(self) -> Tensor | None:
        """int64 [S]: each slice's slot in the bundle, or None if each slot has one slice."""
        owner = self.numbers.owner
        return None if owner is None else owner[self.slices] - self.begin

    @cached_property
    def whole_views(self) -> list[View]:
        """Each shard as one slice."""
        return [slot.whole(place) for place, slot in enumerate(self.slots)]

    @cached_property
    def entries(self) -> tuple[int, Tensor]:
        """Those of all shards together, and int64 [T], of each."""
        numels = [view.numel for view in self.whole_views]
        lengths = torch.tensor(numels).to(self.numbers.step.device, non_blocking=True)
        return sum(numels), lengths

    @cached_property
    def rests_by_entry(self) -> list[int]:
        """Places of vectors of experts, or of positions: entries rest that nothing has met."""
        return [t for t, slot in enumerate(self.slots) if not is_vector(slot.param)]

    @cached_property
    def views(self) -> list[list[View]]:
        """Each shard's slices, as views."""
        if self.method.scale == "tensor":
            return [[view] for view in self.whole_views]
        first = self.numbers.first
        return [
            slot.views(first[place] - first[self.begin])
            for place, slot in enumerate(self.slots, self.begin)
        ]

    @cached_property
    def uncut_views(self) -> list[list[View]]:
        """The same views, in which all entries are one slice: the slot's place in the bundle."""
        return [
            [replace(view, first=place, count=1) for view in own]
            for place, own in enumerate(self.views)
        ]

    @cached_property
    def follows_momentum(self) -> bool:
        """True if a momentum is taken in with what is made of it, in one pass over both."""
        method = self.method
        if method.direction == "momentum":
            return bool(method.options["nesterov"])
        return method.direction == "spectral"

    @cached_property
    def _params(self) -> list[Tensor]:
        return [slot.param for slot in self.slots]

    @cached_property
    def _buffers(self) -> list[tuple[Tensor, ...]]:
        """Those that the rule's update writes."""
        return self._shards_of(self.method.rule.buffers)

    @cached_property
    def moments(self) -> list[tuple[Tensor, ...]]:
        """Those that the direction keeps. Like all state they stay the same tensors."""
        return self._shards_of(self.method.moments.buffers if self.method.moments else ())

    def weights(self) -> list[Tensor]:
        """The shards on this rank."""
        return list(map(local, self._params)) if self.layout.sharded else self._params

    def grads(self) -> list[Tensor]:
        """Their gradients."""
        return list(map(_GRAD, self.slots if self.layout.sharded else self._params))

    def _shards_of(self, names: Sequence[str]) -> list[tuple[Tensor, ...]]:
        """Each slot's state tensors of these names."""
        return [tuple([local(slot.state[name]) for name in names]) for slot in self.slots]

    def parts(self, sources: Sequence[Source] | None = None) -> list[Part]:
        """What the rule is applied to: the shards, and the gradients or directions that it follows.

        Args:
            sources: directions; None for the gradients.
        """
        followed: Sequence[Source] = self.grads() if sources is None else sources
        uncut = [source for source in followed if isinstance(source, Tensor)]
        is_plain = not self.layout.sharded and self.method.scale == "tensor"
        if is_plain and len(uncut) == len(followed):
            return list(map(Part, self.whole_views, self._params, uncut, self._buffers))
        parts: list[Part] = []
        each = zip(self.views, self.weights(), followed, self._buffers, strict=True)
        for views, weight, source, buffers in each:
            for place, view in enumerate(views):
                if isinstance(source, Tensor):
                    own = view.of(source)
                else:
                    own = source[place].view(view.shape)
                parts.append(Part(view, view.of(weight), own, buffers))
        return parts

    def parts_to_judge(self) -> list[Part]:
        """Shards and gradients as they are, whatever slices there are."""
        if self.method.direct:
            return self.parts()
        return list(map(Part, self.whole_views, self.weights(), self.grads()))

    def only(self, begin: int, end: int) -> Bundle:
        """The slots from ``begin`` to ``end`` of these."""
        all_of_them = (begin, end) == (0, len(self.slots))
        if all_of_them:
            return self
        return Bundle(self.numbers, self.begin + begin, self.begin + end, self.paid)
