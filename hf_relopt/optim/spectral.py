"""The orthogonal factors of a step's matrices, wherever their parts lie."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache

import torch
from torch import Tensor

from hf_relopt.backends.stacks import stacks
from hf_relopt.optim.exchange import Matrix, processes, transform_whole
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
        shared = frame.share_work and not is_sharded(param) and processes() > 1
        if (shared or cut is not None) and _is_accelerator(part.device):
            part = part.bfloat16()  # which it is to be in any case, and half as much to send
        matrices.append(Matrix(part, param.shape, cut, _work(frame, param.shape), shared))
        frames.append(frame)

    def factors(numbers: Sequence[int], whole: list[Tensor]) -> list[Tensor]:
        return _factors([frames[number] for number in numbers], whole)

    for (_, b, t), factor in zip(members, transform_whole(matrices, factors), strict=True):
        directions[b][t] = factor.to(directions[b][t].device)


@lru_cache(maxsize=1024)
def _work(frame: Frame, shape: torch.Size) -> float:
    """Multiplications, up to a factor, of the iterations on a matrix of this shape."""
    blocks = _blocks(frame, torch.empty(shape, device="meta"))
    return float(sum(block.numel() * min(block.shape) for block in blocks))


def _factors(frames: Sequence[Frame], whole: Sequence[Tensor]) -> list[Tensor]:
    """The orthogonal factor of each matrix, block by block; equal shapes go together."""
    # A row after the other, whatever the weights' layout is: blocks are to be views.
    whole = [matrix.contiguous() for matrix in whole]
    blocks = [_blocks(frame, matrix) for frame, matrix in zip(frames, whole, strict=True)]
    places = [(number, place) for number, each in enumerate(blocks) for place in range(len(each))]
    members = [blocks[number][place] for number, place in places]
    alike = [(member.device, member.dtype, member.shape) for member in members]
    for some in stacks(alike, [member.numel() for member in members], _STACKED):
        with _without_autocast(members[some[0]].device):
            found = _factors_of_one_shape([members[chosen] for chosen in some])
        for chosen, factor in zip(some, found, strict=True):
            number, place = places[chosen]
            blocks[number][place] = factor
    return [
        # A rank may have none of the experts.
        _put_together(frame, each).view(matrix.shape) if each else matrix
        for frame, each, matrix in zip(frames, blocks, whole, strict=True)
    ]


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Where a step is inside autocast, too, the precision of its products is ours to choose."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def _factors_of_one_shape(blocks: list[Tensor]) -> list[Tensor]:
    """The same in bfloat16 on accelerators, in the blocks' own dtype elsewhere."""
    first = blocks[0]
    made = torch.bfloat16 if _is_accelerator(first.device) else first.dtype
    if first.device.type == "cpu" and min(first.shape) >= _LARGE:
        return [
            orthogonal_factor(block.to(_dtype(block))).to(made).contiguous() for block in blocks
        ]
    stack = torch.stack(blocks)
    return list(orthogonal_factor(stack.to(_dtype(stack))).to(made).contiguous().unbind())


def _put_together(frame: Frame, blocks: list[Tensor]) -> Tensor:
    if len(blocks) == 1:
        return blocks[0]
    return torch.stack(blocks) if frame.in_experts else torch.cat(blocks, dim=frame.split_dim)


def _is_accelerator(device: torch.device) -> bool:
    """True where matrices are multiplied in bfloat16 in any case."""
    return device.type not in ("cpu", "mps")


def _dtype(stack: Tensor) -> torch.dtype:
    """bfloat16 where that multiplies faster: on accelerators, and on CPUs that have it built in.

    The momentum is float32 in either case. What does not fill a CPU's units gains nothing there.
    """
    if _is_accelerator(stack.device):
        return torch.bfloat16
    fills = stack.device.type == "cpu" and min(stack.shape[-2:]) >= _SMALLEST_LOW
    return torch.bfloat16 if fills and _cpu_has_bfloat16() else stack.dtype


@cache
def _cpu_has_bfloat16() -> bool:
    # torch has no public word for it; one that has not this one either stays with float32.
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked and asked())


def _blocks(frame: Frame, matrix: Tensor) -> list[Tensor]:
    """Views of a matrix's blocks as [rows, columns]."""
    sizes = frame.blocks(matrix.shape)
    parts = matrix.split(sizes, frame.split_dim) if frame.scale == "block" else (matrix,)
    if frame.in_experts:
        parts = tuple(part.squeeze(0) for part in parts)
    # A convolution's or an expert's dimensions after the first are its columns. They are contiguous
    # unless the split has cut them, which two dimensions survive.
    return [part if part.dim() == 2 else part.view(part.size(0), -1) for part in parts]
