"""Framed tensors stepped by one norm for each tensor, or for each of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from hf_relopt.backends import BACKENDS
from hf_relopt.backends.batch import Batch, compute_dtype, constant
from hf_relopt.lns.rounding import noise_keys, rounds_stochastically
from hf_relopt.optim.decision import with_anchors
from hf_relopt.optim.frame import Frame
from hf_relopt.optim.measure import Measurement
from hf_relopt.optim.memory import Framed
from hf_relopt.optim.places import Places
from hf_relopt.rules import fromage
from hf_relopt.sharding import (
    Place,
    WholeNorms,
    local,
    local_grad,
    rows_are_whole,
    sum_over_shards,
    whole_norms,
)


@dataclass(frozen=True)
class Block:
    """A block of one tensor: views of what this rank has of it, perhaps nothing.

    Attributes:
        tensor: the tensor's place in its batch.
        numel: entries of the whole block.
        place: where the views lie in the whole tensor; None if they are all of it.
    """

    tensor: int
    param: Tensor
    direction: Tensor
    numel: int
    place: Place | None


def step_blocks(
    portion: Sequence[tuple[Framed, list[Tensor]]],
    places: Places,
    measurement: Measurement | None,
) -> None:
    """Step every tensor along its direction."""
    cut = [(batch, _blocks(batch, found, places)) for batch, found in portion]
    # A tensor of no experts has no blocks.
    members = [(batch, blocks) for batch, blocks in cut if blocks]
    rows = [
        BACKENDS[batch.group["backend"]].local_sums(
            [block.param for block in blocks],
            [block.direction for block in blocks],
            "cosine" if _is_bounded(batch) else "norms",
        )
        for batch, blocks in members
    ]
    norms = whole_norms(
        [[batch.params[block.tensor] for block in blocks] for batch, blocks in members],
        [[batch.indices[block.tensor] for block in blocks] for batch, blocks in members],
        rows,
    )
    for (batch, blocks), norm in zip(members, norms, strict=True):
        _apply(batch, blocks, _decided(batch, blocks, norm), measurement)


def _blocks(batch: Framed, directions: Sequence[Tensor], places: Places) -> list[Block]:
    """All blocks of the batch's tensors, a tensor after the other."""
    frame, noisy = batch.frame, _is_noisy(batch)
    in_blocks = frame.scale == "block" and batch.memory != "vector"
    blocks = []
    for t, (param, direction) in enumerate(zip(batch.params, directions, strict=True)):
        part = local(param)
        place = places.of(batch.indices[t], param) if in_blocks or noisy else None
        if not in_blocks:
            blocks.append(Block(t, part, direction, param.numel(), place))
        elif part.shape == param.shape:
            blocks += _whole_blocks(t, part, direction, frame)
        else:
            blocks += _parts_of_blocks(t, part, direction, frame, place, param.shape)
    return blocks


def _parts_of_blocks(
    tensor: int,
    part: Tensor,
    direction: Tensor,
    frame: Frame,
    place: Place | None,
    shape: torch.Size,
) -> Iterator[Block]:
    """The blocks where this rank has a part of the tensor, and so parts of some of them."""
    dim = frame.split_dim
    corner = (0,) * len(shape) if place is None else place.first
    begin = 0
    for size in frame.blocks(shape):
        # What this rank has of the block, counted from where its own part begins.
        first = min(max(begin - corner[dim], 0), part.size(dim))
        last = min(max(begin + size - corner[dim], first), part.size(dim))
        inside = Place(shape, (*corner[:dim], corner[dim] + first, *corner[dim + 1 :]))
        length = last - first
        own, towards = part.narrow(dim, first, length), direction.narrow(dim, first, length)
        numel = shape.numel() // shape[dim] * size
        yield Block(tensor, own, towards, numel, inside)
        begin += size


def _whole_blocks(tensor: int, param: Tensor, direction: Tensor, frame: Frame) -> Iterator[Block]:
    """The blocks where this rank has all of the tensor."""
    dim, sizes, begin = frame.split_dim, frame.blocks(param.shape), 0
    parts = zip(param.split(sizes, dim), direction.split(sizes, dim), strict=True)
    for part, towards in parts:
        corner = tuple(begin if d == dim else 0 for d in range(param.dim()))
        yield Block(tensor, part, towards, part.numel(), Place(param.shape, corner))
        begin += part.size(dim)


def _is_bounded(batch: Framed) -> bool:
    return batch.memory != "vector" and (batch.frame.p_bound is not None or batch.frame.sphere)


def _is_noisy(batch: Framed) -> bool:
    return rounds_stochastically(batch.params[0].dtype, batch.group["rounding"])


def _decided(batch: Framed, blocks: Sequence[Block], norms: WholeNorms) -> Batch:
    """What the step does with each block; anchors that were missing are made."""
    assert norms.param is not None
    device, group, dtype = norms.param.device, batch.group, norms.param.dtype
    owner = constant(tuple(block.tensor for block in blocks), torch.int64, device)
    numel = constant(tuple(max(1, block.numel) for block in blocks), dtype, device)
    kept = [state["anchor_norm"] for state in batch.states]
    anchors = torch.cat(kept).to(dtype)
    if not batch.anchored:
        share = _shares(blocks, norms.param, numel)
        least = fromage.PLACEHOLDER_BLOCK
        anchors = with_anchors(anchors, norms.param, batch.finite[owner], share, least)
        torch._foreach_copy_(kept, list(anchors.split([len(each) for each in kept])))
    if batch.memory == "vector":
        coefficients = fromage.vector_coefficients(
            lr=batch.lr, anchor_norm=anchors, numel=numel, min_scale=group["min_scale"]
        )
    else:
        coefficients = fromage.coefficients(
            lr=batch.lr,
            param_norm=norms.param,
            grad_norm=norms.grad,
            cosine=norms.cosine,
            anchor_norm=anchors,
            floor=group["min_scale"] * numel.sqrt(),
            p_bound=batch.frame.p_bound,
            sphere=batch.frame.sphere,
            framed=True,
        )
    learn = batch.learn[owner]
    if batch.frame.in_experts:
        learn &= _touched(batch, blocks)
    keys = None
    if _is_noisy(batch):
        number = constant(tuple(batch.indices), torch.int64, device)[owner]
        steps = torch.stack([state["step"] for state in batch.states])[owner]
        keys = noise_keys(group["seed"], number, steps)
    wide = compute_dtype(batch.params[0].dtype)
    return Batch(
        params=[block.param for block in blocks],
        grads=[block.direction for block in blocks],
        buffers=[() for _ in blocks],
        places=[block.place for block in blocks],
        update=fromage.update,
        coefficients={name: value.to(wide) for name, value in coefficients.items()},
        constants={},
        learn=learn,
        # Momenta of several steps may cancel to nothing, which has no direction.
        move=learn & (batch.lr != 0) & (norms.grad > 0) & (norms.grad < torch.inf),
        keys=keys,
        maximize=False,
    )


def _shares(blocks: Sequence[Block], norms: Tensor, numel: Tensor) -> Tensor:
    """What each block would have of its tensor's norm, were that evenly spread."""
    counts = [len(list(own)) for _, own in groupby(blocks, lambda block: block.tensor)]
    each = zip(norms.split(counts), numel.split(counts), strict=True)
    return torch.cat([n.square().sum().sqrt() * (k / k.sum()).sqrt() for n, k in each])


def _touched(batch: Framed, blocks: Sequence[Block]) -> Tensor:
    """Which experts, of which each is a block, have a gradient in this step, bool.

    A momentum is normalised: moved by it alone, an expert would go on by whole steps. What is cut
    from one matrix has its gradient together with the rest.
    """
    device = batch.learn.device
    counts = []
    for t, param in enumerate(batch.params):
        own = [block for block in blocks if block.tensor == t]
        if batch.memory == "vector":
            counts += [torch.ones((), device=device)] * len(own)
            continue
        parts = local_grad(param).split([len(block.param) for block in own])
        counts += [part.count_nonzero().float() for part in parts]
    count = torch.stack(counts).unsqueeze(1)
    members = [batch.params[block.tensor] for block in blocks]
    if not all(map(rows_are_whole, members)):
        numbers = [batch.indices[block.tensor] for block in blocks]
        [count] = sum_over_shards([members], [numbers], [count])
    return count.squeeze(1) > 0


def _apply(
    batch: Framed, blocks: Sequence[Block], decided: Batch, measurement: Measurement | None
) -> None:
    apply = BACKENDS[batch.group["backend"]].apply
    if measurement is None:
        apply(decided)
        return
    for t, (param, index) in enumerate(zip(batch.params, batch.indices, strict=True)):
        with measurement.around(param, index, batch.group, batch.states[t]):
            for place, block in enumerate(blocks):
                if block.tensor == t:
                    apply(decided.only(place))
