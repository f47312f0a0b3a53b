"""Weights as matrices: how a slot is cut into them, and along what their sums meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_relopt.backends.matrices import Matrices, Over
from hf_relopt.backends.part import View
from hf_relopt.sharding.layout import Layout
from hf_relopt.sharding.reduce import all_reduced
from hf_relopt.step.slot import Slot

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle, Source
    from hf_relopt.step.decide import Verdict
    from hf_relopt.step.numbers import Numbers


@dataclass(frozen=True)
class MatrixSlot:
    """A slot whose direction is made of its rows and columns.

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
    def across(self) -> Mapping[Over, Layout]:
        """Where sums are added that have been taken over this rank's rows, columns, or entries.

        A convolution's dimensions after the first are columns.
        """
        first, layout = self._first_dim, self.slot.layout
        end = len(layout.shape)
        return {
            "rows": layout.along({first}),
            "columns": layout.along(range(first + 1, end)),
            "all": layout.along(range(first, end)),
        }

    @cached_property
    def _first_dim(self) -> int:
        """The dimension of the rows: experts come before."""
        return int(self.slot.method.in_experts)

    def size(self, bundles: Sequence[Bundle], verdicts: Mapping[Numbers, Verdict]) -> Tensor:
        """The root mean square of its full gradient, 0-dim."""
        bundle = bundles[self.bundle]
        norm = verdicts[bundle.numbers].grad_norm[bundle.begin + self.place]
        return norm / self.slot.layout.shape.numel() ** 0.5

    def learns(self, bundles: Sequence[Bundle], verdicts: Mapping[Numbers, Verdict]) -> Tensor:
        """Is its gradient usable? 0-dim bool."""
        bundle = bundles[self.bundle]
        return verdicts[bundle.numbers].judged.learn[bundle.begin + self.place]

    @cached_property
    def forms(self) -> list[tuple[int, int, int]]:
        """Of each view, (count, m, n): what this rank has."""
        shard = torch.empty(self.slot.layout.local_shape, device="meta")
        return [tuple(self._stack(view, shard).shape) for view in self.views]  # type: ignore[misc]

    def matrices(self, found: Source, size: Tensor | None) -> list[Matrices]:
        """Those of its gradient or direction, of about ``size``, one stack for each view."""
        numel = self.slot.layout.shape.numel()
        groups = self.across["rows"].groups, self.across["columns"].groups
        lies = groups if any(groups) else None
        cut = []
        for place, view in enumerate(self.views):
            rows = self._rows(view)
            columns = self.slot.slices.numels[view.first] // max(rows, 1)
            stack = found[place] if isinstance(found, list) else self._stack(view, found)
            cut.append(Matrices(stack, size, numel, rows, columns, lies))
        return cut

    def rows_of(self, state: Tensor, view: View) -> Tensor:
        """Of a state tensor with a number for each row, those of a view's matrices: [count, m]."""
        if self.slot.method.in_experts:
            return view.of(state).flatten(1)
        by_columns = self.slot.slices.dim > 0
        if view.narrow is None:
            # Of blocks along columns a row has a number for each of them.
            return state.t() if by_columns else state.view(view.count, -1)
        _, begin, length = view.narrow
        return (state[:, view.first] if by_columns else state[begin : begin + length]).view(1, -1)

    def columns_of(self, state: Tensor, view: View) -> Tensor:
        """The same of one with a number for each column: [count, n]."""
        if self.slot.method.in_experts:
            return view.of(state).flatten(1)
        if view.narrow is None:
            return state.view(view.count, -1)
        _, begin, length = view.narrow
        by_columns = self.slot.slices.dim > 0
        return (state[:, begin : begin + length] if by_columns else state[view.first]).view(1, -1)

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

    def put_together(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        """The full direction of this rank: what the views are views of."""
        if len(parts) == 1 and self.views[0].split is None:
            return parts[0].reshape(like.shape)
        together = like.new_empty(like.shape, dtype=parts[0].dtype)
        for view, each in zip(self.views, parts, strict=True):
            part = view.of(together)
            part.copy_(each.reshape(part.shape))
        return together


def matrix_slots(slots: Sequence[Sequence[Slot]], direction: str) -> list[MatrixSlot]:
    """Those of a direction among the slots of some bundles, in the order of their numbers."""
    found = [
        MatrixSlot(b, t, slot)
        for b, own in enumerate(slots)
        for t, slot in enumerate(own)
        if slot.method.direction == direction and slot.layout.shape.numel()
    ]
    return sorted(found, key=lambda each: each.slot.number)


@dataclass(frozen=True)
class Together:
    """Slots of one device and one value of an option, whose matrices are worked on together.

    Attributes:
        value: of the option.
        matrices: one stack for each view of each slot.
    """

    value: Any
    slots: Sequence[MatrixSlot]
    matrices: list[Matrices]

    def across(self, places: Sequence[tuple[int, Over]], sums: list[Tensor]) -> list[Tensor]:
        """Add the sums of all ranks: one all-reduce for each process group."""
        return all_reduced(sums, [self._homes[place].across[over] for place, over in places])

    @cached_property
    def _homes(self) -> list[MatrixSlot]:
        """Of each of ``matrices``."""
        return [slot for slot in self.slots for _ in slot.views]


def together(
    slots: Sequence[MatrixSlot],
    option: str,
    found: Sequence[Sequence[Source]],
    size: Callable[[MatrixSlot], Tensor | None],
) -> Iterator[Together]:
    """Slots by the value of an option.

    Args:
        found: of each bundle, what the matrices are cut from.
        size: about that of what a slot has there, 0-dim; None for one.
    """
    kinds: dict[tuple[object, Any], list[MatrixSlot]] = {}
    for each in slots:
        key = each.slot.device, each.slot.method.options[option]
        kinds.setdefault(key, []).append(each)
    for (_, value), some in kinds.items():
        cut = [each.matrices(found[each.bundle][each.place], size(each)) for each in some]
        yield Together(value, some, [each for own in cut for each in own])


def in_place(
    slots: Sequence[MatrixSlot], found: Sequence[list[Source]], results: Sequence[Tensor]
) -> None:
    """Put what has become of the slots' matrices in the place of their gradients."""
    each = iter(results)
    for slot in slots:
        own = list(islice(each, len(slot.views)))
        if own:
            like = found[slot.bundle][slot.place]
            if isinstance(like, Tensor):
                found[slot.bundle][slot.place] = slot.put_together(own, like)
            else:
                found[slot.bundle][slot.place] = own
