"""Directions: what a step follows, made of the gradients and their moments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hf_relopt.backends.foreach import apart, end_to_end
from hf_relopt.backends.orthogonalize import multiplies_in_bfloat16
from hf_relopt.options.method import Method
from hf_relopt.plan.roles import is_vector
from hf_relopt.rules import moments
from hf_relopt.sharding.layout import cut_of
from hf_relopt.sharding.matrices import Matrix, processes, transform_whole
from hf_relopt.step.lineup import Bundle
from hf_relopt.step.slot import Slot
from hf_relopt.step.state import widest


def directions(bundles: Sequence[Bundle]) -> list[list[Tensor]]:
    """U of each slot of each bundle, of the shape of its shard.

    Every rank passes bundles of the same sharded matrices.
    """
    found: list[list[Tensor]] = [_direction(bundle) for bundle in bundles]
    _orthogonalize(bundles, found)
    return found


def _direction(bundle: Bundle) -> list[Tensor]:
    """As far as this rank's shards say; "spectral" is the momentum so far."""
    method, grads = bundle.method, bundle.grads()
    if method.direction == "gradient":
        return list(torch._foreach_neg(grads)) if method.options["maximize"] else grads
    if method.direction == "adam":
        return _adam(bundle, grads)
    momenta = [momentum.float() for (momentum,) in bundle.buffers(("momentum",))]
    if not method.options["nesterov"]:
        return momenta
    ascents = list(torch._foreach_neg(grads)) if method.options["maximize"] else grads
    return moments.nesterov(
        momenta, [grad.float() for grad in ascents], decay=method.options["momentum"]
    )


def _adam(bundle: Bundle, grads: Sequence[Tensor]) -> list[Tensor]:
    """m/sqrt(v), both freed of the bias that they start with."""
    first, second = zip(*bundle.buffers(("momentum", "second_moment")), strict=True)
    momenta, decays = [momentum.float() for momentum in first], bundle.method.decays
    steps = bundle.numbers.step[bundle.places].to(widest(momenta[0].device))
    corrections = (1 - decays["decay"] ** steps).float(), (1 - decays["beta"] ** steps).float()
    if not bundle.method.elementwise:
        each = zip(momenta, second, *corrections, strict=True)
        return [moments.adam(m, v, correction1=c1, correction2=c2) for m, v, c1, c2 in each]
    # Vectors are many and small: end to end they cost what one of them does.
    lengths = _lengths(bundle)
    numel = sum([momentum.numel() for momentum in momenta])
    spread = [each.repeat_interleave(lengths, output_size=numel) for each in corrections]
    flat = end_to_end(momenta), end_to_end(second)
    unit = apart(moments.adam(*flat, correction1=spread[0], correction2=spread[1]), momenta)
    # Biases of experts, or of positions: those that nothing has met in this step rest.
    return [
        found if is_vector(slot.param) else torch.where(grad != 0, found, 0.0)
        for found, slot, grad in zip(unit, bundle.slots, grads, strict=True)
    ]


@lru_cache(maxsize=256)
def _lengths(bundle: Bundle) -> Tensor:
    """int64 [T]: entries of each shard."""
    numels = [view.numel for view in bundle.whole_views]
    return torch.tensor(numels).to(bundle.numbers.step.device, non_blocking=True)


def _orthogonalize(bundles: Sequence[Bundle], found: Sequence[list[Tensor]]) -> None:
    """Put the orthogonalized matrices in the place of each momentum that is to be so."""
    places = [
        (slot.number, b, t)
        for b, bundle in enumerate(bundles)
        if bundle.method.direction == "spectral"
        for t, slot in enumerate(bundle.slots)
        if slot.layout.shape.numel() > 0
    ]
    if not places:
        return
    # In the order of the numbers: every rank has to name the same matrices.
    places.sort()
    slots = [bundles[b].slots[t] for _, b, t in places]
    momenta = [found[b][t] for _, b, t in places]
    orthogonalize = bundles[places[0][1]].backend.orthogonalize

    def transform(numbers: Sequence[int], matrices: list[Tensor]) -> list[Tensor]:
        # A row after the other, whatever the weights' layout is: blocks are to be views.
        blocks = [
            _blocks(slots[number].method, matrix.contiguous())
            for number, matrix in zip(numbers, matrices, strict=True)
        ]
        results = iter(orthogonalize([block for own in blocks for block in own]))
        return [
            _put_together(slots[number].method, [next(results) for _ in own], matrix)
            for number, own, matrix in zip(numbers, blocks, matrices, strict=True)
        ]

    matrices = list(map(_matrix, slots, momenta))
    for (_, b, t), result in zip(places, transform_whole(matrices, transform), strict=True):
        found[b][t] = result.to(found[b][t].device)


def _matrix(slot: Slot, momentum: Tensor) -> Matrix:
    """What the ranks have to know of one matrix to share the work."""
    method, layout = slot.method, slot.layout
    cut = cut_of(slot.param, f"parameter {slot.number}") if layout.sharded else None
    if method.in_experts and layout.rows_are_whole:
        cut = None  # a rank has whole experts, and nothing to ask of the others
    if cut is not None:
        momentum = layout.reachable(momentum)
    shared = method.options["share_work"] and not layout.sharded and processes() > 1
    if (shared or cut is not None) and multiplies_in_bfloat16(momentum.device):
        momentum = momentum.bfloat16()  # which it is to be in any case, and half as much to send
    return Matrix(momentum, layout.shape, cut, _flops(method, layout.shape), shared)


@lru_cache(maxsize=1024)
def _flops(method: Method, shape: torch.Size) -> float:
    """Those of the iterations on a matrix of this shape, up to a factor."""
    blocks = _blocks(method, torch.empty(shape, device="meta"))
    return float(sum(block.numel() * min(block.shape) for block in blocks))


def _blocks(method: Method, matrix: Tensor) -> list[Tensor]:
    """Views of a matrix's blocks as [rows, columns]."""
    if method.scale != "block":
        # A convolution's dimensions after the first are its columns.
        return [matrix if matrix.dim() == 2 else matrix.view(matrix.size(0), -1)]
    parts = matrix.split(method.blocks(matrix.shape), method.options["split_dim"])
    if method.in_experts:
        parts = tuple([part.squeeze(0) for part in parts])
    return [part if part.dim() == 2 else part.view(part.size(0), -1) for part in parts]


def _put_together(method: Method, blocks: list[Tensor], like: Tensor) -> Tensor:
    """A tensor of the shape of ``like`` from its blocks; a rank may have none of the experts."""
    if not blocks:
        return like
    if len(blocks) == 1:
        return blocks[0].view(like.shape)
    if method.in_experts:
        return torch.stack(blocks).view(like.shape)
    return torch.cat(blocks, dim=method.options["split_dim"]).view(like.shape)
