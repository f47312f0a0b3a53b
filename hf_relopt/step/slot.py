"""Slots: one weight as the step sees it, worked out once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from hf_relopt.backends.kernel import compute_dtype
from hf_relopt.backends.part import View
from hf_relopt.errors import ConfigError, UnsupportedSetup
from hf_relopt.options.method import Method, method_of
from hf_relopt.rules.rounding import rounds_stochastically
from hf_relopt.sharding.layout import Layout, layout_of, rows_are_whole, shards_of


@dataclass(frozen=True)
class Slices:
    """The parts of one weight that are stepped by a norm of their own: the tensor, blocks or rows.

    Attributes:
        numels: entries of each full slice. Of rows, those of which this rank has some.
        dim: along which the tensor is cut.
        sizes: of the slices along it; empty for the tensor, and for rows, which are all alike.
    """

    numels: Sequence[int]
    dim: int = 0
    sizes: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.numels)


@dataclass(eq=False)
class Slot:
    """One weight as the step sees it.

    Attributes:
        number: its place among all weights of the optimizer, the same on every rank.
        group: its param group, for the learning rate alone: what else is in it, the method holds.
        state: what the optimizer keeps of it; empty until it first takes part.
        grad: during a step, the shard's gradient of a sharded weight. It may take a collective to
            make, so that it is made once.
    """

    number: int
    param: Tensor
    group: Mapping[str, Any]
    state: dict[str, Tensor]
    method: Method
    layout: Layout
    slices: Slices
    device: torch.device
    dtype: torch.dtype
    grad: Tensor | None = None

    @property
    def name(self) -> str:
        """The weight's name in its group, or its place there."""
        place = [param is self.param for param in self.group["params"]].index(True)
        names = self.group.get("param_names")
        return names[place] if names else f"parameter {place}"

    @cached_property
    def precision(self) -> torch.dtype:
        """What the rule runs in."""
        return compute_dtype(self.dtype)

    @cached_property
    def is_noisy(self) -> bool:
        """True if the weight, or what it is stepped by, is rounded stochastically."""
        if self.method.in_codes:
            return True
        return rounds_stochastically(self.dtype, self.method.options["rounding"])

    @cached_property
    def slice_layout(self) -> Layout | None:
        """That of slices which ranks share, if they do: a row is on one rank."""
        return None if self.method.scale == "row" else self.layout

    @cached_property
    def rests_untouched(self) -> bool:
        """True if a slice rests in a step that has no gradient for it, whatever its moments say."""
        method = self.method
        return method.moments is not None and (method.scale == "row" or method.in_experts)

    @property
    def formula(self) -> tuple[Any, ...]:
        """What slots have in common whose decisions are worked out together."""
        method, precision = self.method, self.precision
        if method.direct:
            return method, precision
        read = ("bound", "min_scale", "seed", "rounding")
        kind = method.elementwise, method.is_running
        return *kind, precision, *[method.options[name] for name in read]

    @property
    def key(self) -> tuple[Any, ...]:
        """What slots of one bundle have in common."""
        layout = self.layout
        lies = layout.sharded, layout.groups, layout.reach, layout.rows_are_whole
        return self.method, self.device, self.dtype, lies

    def whole(self, first: int) -> View:
        """The view of the shard as one slice, the ``first`` of its bundle."""
        origin, strides = self._positions()
        return View(first, 1, tuple(self.layout.local_shape), origin, strides)

    def views(self, first: int) -> list[View]:
        """Views of the shard in which all slices can be told apart; the first is ``first``."""
        if self.method.scale == "tensor":
            return [self.whole(first)]
        shape, slices = tuple(self.layout.local_shape), self.slices
        origin, strides = self._positions()
        if not slices.count:
            return []
        each_index = self.method.scale == "row" or (
            self.layout.is_whole and set(slices.sizes) == {1} and slices.dim == 0
        )
        if each_index:
            return [View(first, slices.count, shape, origin, strides)]
        if self.layout.is_whole and len(set(slices.sizes)) == 1:
            return [self._split(first, strides)]
        return [
            self._narrow(first + number, begin, size, origin, strides)
            for number, (begin, size) in enumerate(_begins(slices.sizes))
        ]

    def _positions(self) -> tuple[int, tuple[int, ...]]:
        """The position of the shard's first entry in the full tensor, and the strides there."""
        shape = self.layout.shape
        strides = tuple([math.prod(shape[dim + 1 :]) for dim in range(len(shape))])
        return sum(map(math.prod, zip(self.layout.offset, strides, strict=True))), strides

    def _split(self, first: int, strides: tuple[int, ...]) -> View:
        """Equal blocks, which become the first dimension."""
        dim, size, count = self.slices.dim, self.slices.sizes[0], self.slices.count
        shape = list(self.layout.shape)
        shape[dim] = size
        return View(
            first,
            count,
            (count, *shape),
            0,
            (size * strides[dim], *strides),
            split=(dim, count, size),
        )

    def _narrow(
        self, first: int, begin: int, size: int, origin: int, strides: tuple[int, ...]
    ) -> View:
        """What this rank has of one block, perhaps nothing."""
        dim, shape = self.slices.dim, list(self.layout.local_shape)
        offset, length = self.layout.offset[dim], shape[dim]
        start = min(max(begin - offset, 0), length)
        shape[dim] = min(max(begin + size - offset, start), length) - start
        at = origin + start * strides[dim]
        return View(first, 1, tuple(shape), at, strides, narrow=(dim, start, shape[dim]))


def slot_of(number: int, param: Tensor, group: Mapping[str, Any], state: dict[str, Tensor]) -> Slot:
    """What the step has to know of a weight, which is a member of ``group``."""
    method, layout = method_of(group, param), layout_of(param)
    slices = slices_of(method, layout)
    return Slot(number, param, group, state, method, layout, slices, param.device, param.dtype)


def refuse_gradient(slot: Slot) -> NoReturn:
    """Refuse a sparse or complex gradient.

    Raises:
        ConfigError: names the weight and the remedy.
    """
    grad = slot.param.grad
    assert grad is not None
    if grad.layout is not torch.strided:
        raise ConfigError(
            f"The gradient of {slot.name} is sparse ({grad.layout}); the rules need "
            "norms of dense gradients. Build the embedding with sparse=False."
        )
    raise ConfigError(
        f"The gradient of {slot.name} is complex ({grad.dtype}); the rules are for "
        "real numbers. Train torch.view_as_real(parameter) instead."
    )


def refuse_unfit(group: Mapping[str, Any], param: Tensor, name: str) -> None:
    """Refuse a shard that its group's direction or scale has no use for.

    Raises:
        UnsupportedSetup: a spectral matrix that is sharded over several dimensions of its mesh, or
            rows that are sharded.
    """
    method = method_of(group, param)
    if method.direction == "spectral":
        shards_of(param, name)
    if method.scale == "row" and not rows_are_whole(param):
        raise UnsupportedSetup(
            f"{name} is sharded across its rows ({param.placements}), but scale 'row' needs "  # type: ignore[attr-defined]
            "full rows. Shard its first dimension, or use scale='tensor' for it."
        )


def slices_of(method: Method, layout: Layout) -> Slices:
    """How a weight that lies like this is cut into slices."""
    shape = layout.shape
    if method.scale == "tensor":
        return Slices((shape.numel(),))
    if method.scale == "row":
        rows = layout.local_shape[0]
        return Slices((math.prod(shape[1:]),) * rows)
    dim, sizes = method.options["split_dim"], tuple(method.blocks(shape))
    each = shape.numel() // shape[dim] if shape[dim] else 0
    return Slices(tuple([size * each for size in sizes]), dim, sizes)


def _begins(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where each size begins if they follow each other, and the size."""
    found, begin = [], 0
    for size in sizes:
        found.append((begin, size))
        begin += size
    return found


def in_bundles(slots: Sequence[Slot]) -> list[list[Slot]]:
    """Slots by what they have in common; those that are decided together follow each other."""
    formulas: dict[Any, dict[Any, list[Slot]]] = {}
    for slot in slots:
        bundles = formulas.setdefault(slot.formula, {})
        bundles.setdefault(slot.key, []).append(slot)
    return [bundle for bundles in formulas.values() for bundle in bundles.values()]
