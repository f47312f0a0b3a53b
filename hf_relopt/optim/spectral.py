"""The orthogonal factors of a step's matrices, wherever their parts lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_relopt.optim.exchange import Matrix, transform_whole
from hf_relopt.optim.frame import Frame
from hf_relopt.optim.memory import Framed
from hf_relopt.rules.direction import orthogonal_factor
from hf_relopt.sharding import cut_of, is_sharded, reachable, rows_are_whole

# Entries that are iterated on together; experts may be many.
_STACKED = 2**25
# Rows from which on, on a CPU, matrices gain nothing from being multiplied together.
_LARGE = 384
# Rows from which on a CPU with bfloat16 built in multiplies it faster than float32.
_SMALLEST_LOW = 128


def make_spectral(portion: Sequence[Framed], directions: Sequence[list[Tensor]]) -> None:
    """Put the orthogonal factor of each momentum in its place in ``directions``."""
    members = [
        (portion[b].indices[t], b, t)
        for b, batch in enumerate(portion)
        if batch.memory == "spectral"
        for t, param in enumerate(batch.params)
        if param.numel() > 0
    ]
    # In the order of the numbers: every rank has to name the same matrices.
    members.sort()
    matrices, frames = [], []
    for index, b, t in members:
        param, part = portion[b].params[t], directions[b][t]
        frame = portion[b].frame
        cut = cut_of(param, f"parameter {index}")
        if frame.in_experts and rows_are_whole(param):
            cut = None  # a rank has whole experts, and nothing to ask of the others
        part = part if cut is None else reachable(part, param)
        if part.device.type not in ("cpu", "mps"):
            part = part.bfloat16()  # which it is to be in any case, and half as much to send
        shared = frame.share_work and not is_sharded(param)
        matrices.append(Matrix(part, param.shape, cut, _work(frame, param.shape), shared))
        frames.append(frame)

    def factors(numbers: Sequence[int], whole: list[Tensor]) -> list[Tensor]:
        return _factors([frames[number] for number in numbers], whole)

    for (_, b, t), factor in zip(members, transform_whole(matrices, factors), strict=True):
        directions[b][t] = factor.to(directions[b][t].device)


def _work(frame: Frame, shape: torch.Size) -> float:
    """Multiplications, up to a factor, of the iterations on a matrix of this shape."""
    blocks = _blocks(frame, torch.empty(shape, device="meta"))
    return float(sum(block.numel() * min(block.shape) for block in blocks))


def _factors(frames: Sequence[Frame], whole: Sequence[Tensor]) -> list[Tensor]:
    """The orthogonal factor of each matrix, block by block; equal shapes go together."""
    # A row after the other, whatever the weights' layout is: blocks are to be views.
    whole = [matrix.contiguous() for matrix in whole]
    results = [torch.empty_like(matrix) for matrix in whole]
    shapes: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for frame, matrix, result in zip(frames, whole, results, strict=True):
        for block, target in zip(_blocks(frame, matrix), _blocks(frame, result), strict=True):
            # The factor of a transpose is the factor's transpose: the smaller side comes first.
            wide = (block, target) if block.size(0) <= block.size(1) else (block.mT, target.mT)
            shapes.setdefault((block.device, wide[0].shape), []).append(wide)
    for pairs in shapes.values():
        if pairs[0][0].device.type == "cpu" and pairs[0][0].size(0) >= _LARGE:
            for block, target in pairs:
                target.copy_(orthogonal_factor(block.to(_dtype(block))))
            continue
        at_once = max(1, _STACKED // pairs[0][0].numel())
        for first in range(0, len(pairs), at_once):
            some = pairs[first : first + at_once]
            stack = torch.stack([block for block, _ in some])
            factors = orthogonal_factor(stack.to(_dtype(stack)))
            torch._foreach_copy_([target for _, target in some], list(factors.unbind()))
    return results


def _dtype(stack: Tensor) -> torch.dtype:
    """bfloat16 where that multiplies faster: on accelerators, and on CPUs that have it built in.

    The momentum is float32 in either case. What does not fill a CPU's units gains nothing there.
    """
    if stack.device.type == "mps" or (stack.device.type == "cpu" and not _cpu_has_bfloat16()):
        return stack.dtype
    if stack.device.type == "cpu" and stack.size(-2) < _SMALLEST_LOW:
        return stack.dtype
    return torch.bfloat16


@cache
def _cpu_has_bfloat16() -> bool:
    # torch has no public word for it; one that has not this one either stays with float32.
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked and asked())


def _blocks(frame: Frame, matrix: Tensor) -> list[Tensor]:
    """Views of a matrix's blocks as [rows, columns]."""
    parts = matrix.split(frame.blocks(matrix.shape), frame.split_dim)
    if frame.in_experts:
        parts = tuple(part.squeeze(0) for part in parts)
    # A convolution's or an expert's dimensions after the first are its columns. They are contiguous
    # unless the split has cut them, which two dimensions survive.
    return [part if part.dim() == 2 else part.view(part.size(0), -1) for part in parts]
