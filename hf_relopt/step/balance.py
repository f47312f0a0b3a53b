"""Gradients whose rows and columns are balanced: which, how they are cut, where they are summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING

from torch import Tensor

from hf_relopt.backends.part import View
from hf_relopt.backends.sinkhorn import Unbalanced, balance
from hf_relopt.sharding.layout import Layout
from hf_relopt.sharding.reduce import all_reduced
from hf_relopt.step.slot import Slot

if TYPE_CHECKING:
    from hf_relopt.step.lineup import Bundle
    from hf_relopt.step.numbers import Numbers


@dataclass(frozen=True)
class UnbalancedSlot:
    """A slot whose gradient is balanced.

    Attributes:
        bundle, place: of the slot, among the bundles and in its own.
    """

    bundle: int
    place: int
    slot: Slot

    @cached_property
    def views(self) -> list[View]:
        """Of its matrices."""
        return self.slot.views(0)

    @cached_property
    def across_rows(self) -> Layout:
        """Where sums of columns are added."""
        return self.slot.layout.along({self._first_dim})

    @cached_property
    def across_columns(self) -> Layout:
        """Where sums of rows are added. A convolution's dimensions after the first are columns."""
        shape = self.slot.layout.shape
        return self.slot.layout.along(range(self._first_dim + 1, len(shape)))

    @cached_property
    def _first_dim(self) -> int:
        """The dimension of the rows: experts come before."""
        return int(self.slot.method.in_experts)

    def matrices(self, grad: Tensor, size: Tensor) -> list[Unbalanced]:
        """Those of its gradient, of root mean square ``size``, one stack for each view."""
        numel = self.slot.layout.shape.numel()
        groups = self.across_rows.groups, self.across_columns.groups
        lies = groups if any(groups) else None
        found = []
        for view in self.views:
            rows = self._rows(view)
            columns = self.slot.slices.numels[view.first] // max(rows, 1)
            own = self._stack(view, grad)
            found.append(Unbalanced(own, size, numel, rows, columns, lies))
        return found

    def _rows(self, view: View) -> int:
        """Of a full matrix."""
        slices = self.slot.slices
        cut = slices.sizes and slices.dim == 0 and not self.slot.method.in_experts
        return slices.sizes[view.first] if cut else self.slot.layout.shape[self._first_dim]

    def _stack(self, view: View, tensor: Tensor) -> Tensor:
        """[count, m, n]."""
        part = view.of(tensor)
        if part.dim() == tensor.dim() and not self.slot.method.in_experts:
            # One matrix, or blocks of a row each.
            part = part.unsqueeze(1 if view.count > 1 else 0)
        return part if part.dim() == 3 else part.flatten(2)

    def put_together(self, balanced: Sequence[Tensor], like: Tensor) -> Tensor:
        """The full direction of this rank: what the views are views of."""
        if len(balanced) == 1 and self.views[0].split is None:
            return balanced[0].reshape(like.shape)
        together = like.new_empty(like.shape, dtype=balanced[0].dtype)
        for view, each in zip(self.views, balanced, strict=True):
            part = view.of(together)
            part.copy_(each.reshape(part.shape))
        return together


def unbalanced_slots(slots: Sequence[Sequence[Slot]]) -> list[UnbalancedSlot]:
    """Those among the slots of some bundles, in the order of the slots' numbers."""
    found = [
        UnbalancedSlot(b, t, slot)
        for b, own in enumerate(slots)
        for t, slot in enumerate(own)
        if slot.method.direction == "sinkhorn" and slot.layout.shape.numel()
    ]
    return sorted(found, key=lambda each: each.slot.number)


def _added(layouts: Sequence[Layout], places: Sequence[int], sums: list[Tensor]) -> list[Tensor]:
    """The sums of all ranks; one all-reduce for each process group."""
    return all_reduced(sums, [layouts[place] for place in places])


def balance_all(
    bundles: Sequence[Bundle],
    slots: Sequence[UnbalancedSlot],
    found: Sequence[list[Tensor]],
    grad_norms: Mapping[Numbers, Tensor],
) -> None:
    """Put the balanced gradients in the place of each that is to be so."""
    by_iterations: dict[tuple[object, int], list[UnbalancedSlot]] = {}
    for each in slots:
        key = each.slot.device, each.slot.method.options["iterations"]
        by_iterations.setdefault(key, []).append(each)
    for (_, iterations), some in by_iterations.items():
        matrices: list[Unbalanced] = []
        homes: list[UnbalancedSlot] = []
        for each in some:
            bundle = bundles[each.bundle]
            norm = grad_norms[bundle.numbers][bundle.begin + each.place]
            size = norm / each.slot.layout.shape.numel() ** 0.5
            own = each.matrices(found[each.bundle][each.place], size)
            matrices += own
            homes += [each] * len(own)
        across = (
            partial(_added, [home.across_rows for home in homes]),
            partial(_added, [home.across_columns for home in homes]),
        )
        results = iter(balance(matrices, iterations, *across))
        for each in some:
            balanced = list(islice(results, len(each.views)))
            if balanced:
                like = found[each.bundle][each.place]
                found[each.bundle][each.place] = each.put_together(balanced, like)
