"""Directions: what a step follows, made of the gradients and their moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_relopt.backends.foreach import apart, end_to_end
from hf_relopt.backends.orthogonalize import multiplies_in_bfloat16
from hf_relopt.rules import moments
from hf_relopt.sharding.layout import Shards, shards_of
from hf_relopt.sharding.matrices import Matrix, transform_full, world_size
from hf_relopt.step.balance import balance_all
from hf_relopt.step.factors import follow_all
from hf_relopt.step.neurons import even_all
from hf_relopt.step.slot import Slot

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle
    from hf_relopt.step.decide import Verdict
    from hf_relopt.step.numbers import Numbers
    from hf_relopt.step.portions import Portion


def directions(portion: Portion, verdicts: Mapping[Numbers, Verdict]) -> list[list[Tensor]]:
    """U of each slot of each bundle, of the shape of its shard.

    Every rank passes a portion with the same sharded matrices.
    """
    found = list(map(_direction, portion.bundles))
    if portion.matrices:
        _orthogonalize(portion, found)
    if portion.uneven:
        even_all(portion.bundles, portion.uneven, found, verdicts)
    if portion.unbalanced:
        balance_all(portion.bundles, portion.unbalanced, found, verdicts)
    if portion.factored:
        follow_all(portion.bundles, portion.factored, found, verdicts)
    return found


def _direction(bundle: Bundle) -> list[Tensor]:
    """As far as this rank's shards say: a momentum, or g, that what matrices have is made of."""
    method, grads = bundle.method, bundle.grads()
    if method.direction == "adam":
        return _adam(bundle, grads)
    ascents = list(torch._foreach_neg(grads)) if method.options["maximize"] else grads
    if method.moments is None:
        return ascents
    (kept,) = zip(*bundle.moments, strict=True)
    momenta: list[Tensor] = list(map(Tensor.float, kept))
    if not method.options["nesterov"]:
        return momenta
    decay = method.options["momentum"]
    return moments.nesterov(momenta, list(map(Tensor.float, ascents)), decay=decay)


def _adam(bundle: Bundle, grads: Sequence[Tensor]) -> list[Tensor]:
    """m/sqrt(v), both freed of the bias that they start with."""
    first, second = zip(*bundle.moments, strict=True)
    momenta, decays = list(map(Tensor.float, first)), bundle.method.decays
    steps = bundle.numbers.step[bundle.places].to(bundle.numbers.numel.dtype)
    correction1, correction2 = 1 - decays["decay"] ** steps, 1 - decays["beta"] ** steps
    if not bundle.method.elementwise:
        each = zip(momenta, second, correction1.float(), correction2.float(), strict=True)
        return [moments.adam(m, v, correction1=c1, correction2=c2) for m, v, c1, c2 in each]
    # Vectors are many and small: end to end they cost what one of them does.
    numel, lengths = bundle.entries
    flat = moments.adam(
        end_to_end(momenta),
        end_to_end(second),
        correction1=correction1.float().repeat_interleave(lengths, output_size=numel),
        correction2=correction2.float().repeat_interleave(lengths, output_size=numel),
    )
    found = apart(flat, momenta)
    for t in bundle.rests_by_entry:
        found[t] = torch.where(grads[t] != 0, found[t], 0.0)
    return found


def _orthogonalize(portion: Portion, found: Sequence[list[Tensor]]) -> None:
    """Put the orthogonalized matrices in the place of each momentum that is to be so."""
    matrices = portion.matrices
    orthogonalize = portion.bundles[matrices[0].bundle].backend.orthogonalize

    def transform(numbers: Sequence[int], momenta: Sequence[Tensor]) -> list[Tensor]:
        blocks: list[Tensor] = []
        counts: list[int] = []
        for number, momentum in zip(numbers, momenta, strict=True):
            # A row after the other, whatever the weights' layout is: blocks are to be views.
            own = matrices[number].blocks(momentum.contiguous())
            blocks += own
            counts.append(len(own))
        results = iter(orthogonalize(blocks))
        return [
            matrices[number].put_together(list(islice(results, count)), momentum)
            for number, count, momentum in zip(numbers, counts, momenta, strict=True)
        ]

    momenta = [found[matrix.bundle][matrix.place] for matrix in matrices]
    if any([matrix.travels for matrix in matrices]):
        full = [matrix.on_its_way(own) for matrix, own in zip(matrices, momenta, strict=True)]
        momenta = transform_full(full, transform)
    else:
        momenta = transform(range(len(matrices)), momenta)
    for matrix, momentum in zip(matrices, momenta, strict=True):
        own = found[matrix.bundle]
        own[matrix.place] = momentum.to(own[matrix.place].device)


@dataclass(frozen=True)
class SpectralMatrix:
    """A slot whose momentum is orthogonalized.

    Attributes:
        bundle, place: of the slot, among the bundles and in its own.
        shards: how its momentum is brought to one rank; None if this one has all, or full experts.
        replicated: does each rank orthogonalize some of the matrices that all have?
        sizes, dim: of its blocks along a dimension; None if it is one matrix.
        experts: is each index of the first dimension a matrix?
    """

    bundle: int
    place: int
    slot: Slot
    shards: Shards | None
    replicated: bool
    sizes: list[int] | None
    dim: int
    experts: bool

    @property
    def travels(self) -> bool:
        """True if other ranks have a part in it."""
        return self.shards is not None or self.replicated

    def on_its_way(self, momentum: Tensor) -> Matrix:
        """What the ranks have to know to share the work."""
        if self.shards is not None:
            momentum = self.slot.layout.reachable(momentum)
        if self.travels and multiplies_in_bfloat16(momentum.device):
            momentum = momentum.bfloat16()  # which it will be anyway, and half as much to send
        shape = self.slot.layout.shape
        return Matrix(momentum, shape, self.shards, self.flops, self.replicated)

    @cached_property
    def flops(self) -> float:
        """Those of the iterations, up to a factor."""
        blocks = self.blocks(torch.empty(self.slot.layout.shape, device="meta"))
        return float(sum([block.numel() * min(block.shape) for block in blocks]))

    def blocks(self, matrix: Tensor) -> list[Tensor]:
        """Views as [rows, columns]."""
        if self.experts:
            parts = matrix.unbind()
        else:
            parts = (matrix,) if self.sizes is None else matrix.split(self.sizes, self.dim)
        # A convolution's dimensions after the first are its columns.
        return [part if part.dim() == 2 else part.reshape(part.size(0), -1) for part in parts]

    def put_together(self, blocks: list[Tensor], like: Tensor) -> Tensor:
        """A tensor of the shape of ``like``. Of experts a rank may have none."""
        if not blocks:
            return like
        if len(blocks) == 1:
            return blocks[0].view(like.shape)
        together = torch.stack(blocks) if self.experts else torch.cat(blocks, dim=self.dim)
        return together.view(like.shape)


def spectral_matrices(slots: Sequence[Sequence[Slot]]) -> list[SpectralMatrix]:
    """Those among the slots of some bundles.

    They are in the order of the slots' numbers: every rank has to name the same matrices.
    """
    found = []
    for b, own in enumerate(slots):
        for t, slot in enumerate(own):
            method, layout = slot.method, slot.layout
            if method.direction != "spectral" or layout.shape.numel() == 0:
                continue
            shards = shards_of(slot.param, slot.name) if layout.sharded else None
            if method.in_experts and layout.rows_are_whole:
                shards = None  # a rank has full experts, and nothing to ask of the others
            shares = method.options["share_work"] and not layout.sharded and world_size() > 1
            sizes = method.blocks(layout.shape) if method.scale == "block" else None
            dim = method.options["split_dim"]
            found.append(SpectralMatrix(b, t, slot, shards, shares, sizes, dim, method.in_experts))
    return sorted(found, key=lambda matrix: matrix.slot.number)
