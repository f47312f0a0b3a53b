"""What a backend is given, without an optimizer around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_relopt.backends.part import Decision, Equation, Part, View
from hf_relopt.rules import fromage
from hf_relopt.rules.rounding import noise_keys

SHAPES = [(6, 5), (4, 3), (6, 5), (2, 2, 3), (6, 5), (4, 3), (6, 5)]


@dataclass
class Batch:
    parts: list[Part]
    equation: Equation
    decision: Decision

    def weights(self) -> list[torch.Tensor]:
        return [part.weight for part in self.parts]

    def given(self) -> tuple[list[Part], Equation, Decision]:
        return self.parts, self.equation, self.decision


def view_of(
    first: int, shape: tuple[int, ...], count: int = 1, origin: int = 0, columns: int | None = None
) -> View:
    """A view of ``shape``; of a tensor with more ``columns``, if they are given."""
    strides, stride = [], 1
    for dim, size in reversed(list(enumerate(shape))):
        strides.append(stride)
        stride *= columns if columns is not None and dim == len(shape) - 1 else size
    return View(first, count, shape, origin, tuple(reversed(strides)))


def batch_of(
    dtype: torch.dtype, shapes: list[tuple[int, ...]], noisy: bool, by_row: tuple[int, ...] = ()
) -> Batch:
    """A step whose third tensor may not move, and whose last one is a part of a larger one.

    The tensors at the places ``by_row`` have a slice for each index of their first dimension.
    """
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    sources = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    views: list[View] = []
    owners: list[int] = []
    for place, shape in enumerate(shapes):
        count = shape[0] if place in by_row else 1
        origin = 30 if place == len(shapes) - 1 else 0
        views.append(view_of(len(owners), shape, count, origin))
        owners += [place] * count
    move = torch.tensor([owner != 2 for owner in owners])
    numbers = torch.rand(3, len(owners), generator=generator)
    keys = noise_keys(3, torch.tensor(owners), torch.ones(len(owners)))
    coefficients = dict(zip(("shrink", "move", "grad_norm"), numbers, strict=True))
    return Batch(
        # The sources as bfloat16, which a direction is on an accelerator.
        [Part(v, w.to(dtype), s) for v, w, s in zip(views, drawn, sources, strict=True)],
        Equation(fromage.update, {}, True),
        Decision(coefficients, move, move, keys if noisy and dtype is not torch.float32 else None),
    )
