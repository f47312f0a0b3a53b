"""What a backend is given, without an optimizer around it."""

from __future__ import annotations

import torch

from hf_relopt.backends.batch import Batch
from hf_relopt.rules.rounding import noise_keys
from hf_relopt.rules import fromage
from hf_relopt.sharding.layout import Place

SHAPES = [(6, 5), (4, 3), (6, 5), (2, 2, 3), (6, 5), (4, 3), (6, 5)]


def batch_of(dtype: torch.dtype, shapes: list[tuple[int, ...]], noisy: bool) -> Batch:
    """A step whose third tensor may not move, and whose last one is a part of a larger one."""
    generator = torch.Generator().manual_seed(5)
    count = len(shapes)
    places: list[Place | None] = [None] * count
    places[-1] = Place(torch.Size((12, 5)), (6, 0))
    numbers = torch.rand(3, count, generator=generator)
    move = torch.ones(count, dtype=torch.bool)
    move[2] = False
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    return Batch(
        params=[tensor.to(dtype) for tensor in drawn],
        # As bfloat16, which a direction is on an accelerator.
        grads=[torch.randn(shape, generator=generator).bfloat16() for shape in shapes],
        buffers=[() for _ in shapes],
        places=places,
        update=fromage.update,
        coefficients=dict(zip(("shrink", "move", "grad_norm"), numbers, strict=True)),
        constants={},
        learn=move,
        move=move,
        keys=noise_keys(3, torch.arange(count), torch.ones(count)) if noisy else None,
        maximize=True,
    )
