"""Directions: what a step follows, made of the gradients and their moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_relopt.backends.foreach import apart, end_to_end
from hf_relopt.backends.orthogonalize import multiplies_in_bfloat16
from hf_relopt.backends.part import View
from hf_relopt.backends.stacks import stacked
from hf_relopt.rules import moments
from hf_relopt.sharding.layout import Shards, shards_of
from hf_relopt.sharding.matrices import Matrix, transform_full, world_size
from hf_relopt.step.balance import balance_all
from hf_relopt.step.factors import follow_all
from hf_relopt.step.matrices import MatrixSlot, in_place
from hf_relopt.step.moments import take_in_and_follow
from hf_relopt.step.neurons import even_all
from hf_relopt.step.slot import Slot

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle, Source
    from hf_relopt.step.decide import Verdict
    from hf_relopt.step.numbers import Numbers
    from hf_relopt.step.portions import Portion


def directions(portion: Portion, verdicts: Mapping[Numbers, Verdict]) -> list[list[Source]]:
    """U of each slot of each bundle, of the shape of its shard, or of each of its views.

    Every rank passes a portion with the same sharded matrices.
    """
    stacks = _stacks(portion.matrices)
    found: list[list[Source]] = []
    for number, bundle in enumerate(portion.bundles):
        own = [stacks.get((number, place)) for place in range(len(bundle.slots))]
        found.append(_direction(bundle, own, verdicts))
    if portion.matrices:
        _orthogonalize(portion, found)
    if portion.travelling:
        _orthogonalize_together(portion, found)
    if portion.uneven:
        even_all(portion.bundles, portion.uneven, found, verdicts)
    if portion.unbalanced:
        balance_all(portion.bundles, portion.unbalanced, found, verdicts)
    if portion.factored:
        follow_all(portion.bundles, portion.factored, found, verdicts)
    return found


def _stacks(slots: Sequence[MatrixSlot]) -> dict[tuple[int, int], list[Tensor]]:
    """Room for the momentum of each slot, by its bundle and place: [count, m, n] for each view.

    Matrices of one shape lie one after the other, as they are multiplied.
    """
    counts: dict[tuple[torch.device, int, int], list[int]] = {}
    for slot in slots:
        for count, m, n in slot.forms:
            counts.setdefault((slot.slot.device, m, n), []).append(count)
    rooms: dict[tuple[torch.device, int, int], Iterator[Tensor]] = {}
    for (device, m, n), own in counts.items():
        room = torch.empty(sum(own), m, n, dtype=_dtype_of_products(device), device=device)
        rooms[device, m, n] = iter(room.split(own))
    return {
        (slot.bundle, slot.place): [next(rooms[slot.slot.device, m, n]) for _, m, n in slot.forms]
        for slot in slots
    }


def _dtype_of_products(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if multiplies_in_bfloat16(device) else torch.float32


def _direction(
    bundle: Bundle, stacks: Sequence[list[Tensor] | None], verdicts: Mapping[Numbers, Verdict]
) -> list[Source]:
    """As far as this rank's shards say: a momentum, or g, that what matrices have is made of.

    Args:
        stacks: for each slot, room for what its views have of a momentum, or None.
    """
    method = bundle.method
    if bundle.follows_momentum:
        return _momentum(bundle, stacks, verdicts[bundle.numbers].judged.learn[bundle.places])
    if method.direction == "adam":
        return list(_adam(bundle, bundle.grads()))
    if method.moments is not None:
        (kept,) = zip(*bundle.moments, strict=True)
        return list(map(Tensor.float, kept))
    grads = bundle.grads()
    return list(torch._foreach_neg(grads)) if method.options["maximize"] else list(grads)


def _momentum(bundle: Bundle, stacks: Sequence[list[Tensor] | None], learn: Tensor) -> list[Source]:
    """What is followed of each momentum, which takes the gradient in: in a stack, or by itself."""
    views: list[list[View]] = []
    into: list[list[Tensor]] = []
    found: list[Source] = []
    spectral = bundle.method.direction == "spectral"
    for place, (stack, (momentum,)) in enumerate(zip(stacks, bundle.moments, strict=True)):
        if stack is not None:
            views.append(bundle.uncut_views[place])
            into.append(stack)
            found.append(stack)
        else:
            dtype = _dtype_of_products(momentum.device) if spectral else torch.float32
            own = torch.empty(momentum.shape, dtype=dtype, device=momentum.device)
            views.append([bundle.whole_views[place]])
            into.append([own])
            found.append(own)
    take_in_and_follow(bundle, views, into, learn)
    return found


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


def _orthogonalize(portion: Portion, found: Sequence[list[Source]]) -> None:
    """Put the orthogonalized matrices in the place of each momentum that this rank has."""
    slots = portion.matrices
    stacks = [stack for slot in slots for stack in found[slot.bundle][slot.place]]
    orthogonalize = portion.bundles[slots[0].bundle].backend.orthogonalize
    results = iter(orthogonalize([matrix for stack in stacks for matrix in stack]))
    # Of experts a rank may have none.
    made = [stacked(list(islice(results, len(own)))) if len(own) else own for own in stacks]
    in_place(slots, found, made)


def _orthogonalize_together(portion: Portion, found: Sequence[list[Source]]) -> None:
    """The same of each momentum that other ranks have a part in, or share the work of."""
    matrices = portion.travelling
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

    full: list[Matrix] = []
    for matrix in matrices:
        momentum = found[matrix.bundle][matrix.place]
        assert isinstance(momentum, Tensor)
        full.append(matrix.on_its_way(momentum))
    for matrix, own in zip(matrices, transform_full(full, transform), strict=True):
        found[matrix.bundle][matrix.place] = own.to(matrix.slot.device)


@dataclass(frozen=True)
class TravellingMatrix:
    """A slot whose momentum is orthogonalized, and that other ranks have a part in.

    Attributes:
        bundle, place: of the slot, among the bundles and in its own.
        shards: how its momentum is brought to one rank; None if this one has all.
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

    def on_its_way(self, momentum: Tensor) -> Matrix:
        """What the ranks have to know to share the work."""
        if self.shards is not None:
            momentum = self.slot.layout.reachable(momentum)
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


def travelling_matrices(slots: Sequence[Sequence[Slot]]) -> list[TravellingMatrix]:
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
            if shards is None and not shares:
                continue
            sizes = method.blocks(layout.shape) if method.scale == "block" else None
            dim, experts = method.options["split_dim"], method.in_experts
            found.append(TravellingMatrix(b, t, slot, shards, shares, sizes, dim, experts))
    return sorted(found, key=lambda matrix: matrix.slot.number)
