"""Bundles: slots that are stepped together, since their methods, dtypes and devices are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends import backend_of
from hf_relopt.backends.part import Backend, Equation, Part, View
from hf_relopt.options.method import Method
from hf_relopt.sharding.layout import Layout, local, local_grad
from hf_relopt.step.numbers import Numbers
from hf_relopt.step.slot import Slot


@dataclass(frozen=True, eq=False)
class Bundle:
    """Slots of one method, dtype, device and kind of layout, and their packed numbers.

    Attributes:
        numbers: of all slots on the device.
        begin, end: the slots are ``numbers.slots[begin:end]``.
    """

    numbers: Numbers
    begin: int
    end: int

    @cached_property
    def slots(self) -> Sequence[Slot]:
        """The slots, by their numbers."""
        return self.numbers.slots[self.begin : self.end]

    @cached_property
    def members(self) -> frozenset[int]:
        """The slots' numbers in the optimizer."""
        return frozenset([slot.number for slot in self.slots])

    @cached_property
    def method(self) -> Method:
        """What all of them follow."""
        return self.slots[0].method

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.slots[0].dtype

    @cached_property
    def layout(self) -> Layout:
        """That of one of them: all are sharded over the same process groups, or none is."""
        return self.slots[0].layout

    @cached_property
    def slice_layout(self) -> Layout | None:
        """That of slices which ranks share, if they do: a row is on one rank."""
        return None if self.method.scale == "row" else self.layout

    @cached_property
    def rests_untouched(self) -> bool:
        """Does a slice rest in a step that has no gradient for it, whatever its moments say?"""
        method = self.method
        return method.moments is not None and (method.scale == "row" or method.in_experts)

    @cached_property
    def backend(self) -> Backend:
        """What runs their arithmetic."""
        return backend_of(self.method.options["backend"])

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
    def views(self) -> list[list[View]]:
        """Each shard's slices, as views."""
        if self.method.scale == "tensor":
            return [[view] for view in self.whole_views]
        first = self.numbers.first
        begins = first[self.begin : self.end]
        return [
            slot.views(begin - first[self.begin])
            for slot, begin in zip(self.slots, begins, strict=True)
        ]

    def weights(self) -> list[Tensor]:
        """The shards on this rank."""
        if not self.layout.sharded:
            return [slot.param for slot in self.slots]
        return [local(slot.param) for slot in self.slots]

    def grads(self) -> list[Tensor]:
        """Their gradients."""
        if not self.layout.sharded:
            return [slot.param.grad for slot in self.slots]  # type: ignore[misc]
        return [local_grad(slot.param) for slot in self.slots]

    def buffers(self, names: Sequence[str]) -> list[tuple[Tensor, ...]]:
        """Each slot's state tensors of these names, as shards."""
        if not names:
            return [()] * len(self.slots)
        if not self.layout.sharded:
            return [tuple([slot.state[name] for name in names]) for slot in self.slots]
        return [tuple([local(slot.state[name]) for name in names]) for slot in self.slots]

    def parts(self, sources: Sequence[Tensor]) -> list[Part]:
        """What the rule is applied to, along ``sources``: the slots' gradients or directions."""
        weights, buffers = self.weights(), self.buffers(self.method.rule.buffers)
        if self.method.scale == "tensor":
            return list(map(Part, self.whole_views, weights, sources, buffers))
        return [
            Part(view, view.of(weight), view.of(source))
            for views, weight, source in zip(self.views, weights, sources, strict=True)
            for view in views
        ]

    def only(self, begin: int, end: int) -> Bundle:
        """The slots from ``begin`` to ``end`` of these."""
        if (begin, end) == (0, len(self.slots)):
            return self
        return Bundle(self.numbers, self.begin + begin, self.begin + end)


def in_bundles(slots: Sequence[Slot]) -> list[list[Slot]]:
    """Slots by what they have in common; those that are decided together follow each other."""
    formulas: dict[Any, dict[Any, list[Slot]]] = {}
    for slot in slots:
        bundles = formulas.setdefault(slot.formula, {})
        bundles.setdefault(slot.key, []).append(slot)
    return [bundle for bundles in formulas.values() for bundle in bundles.values()]
