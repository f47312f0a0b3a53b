"""Portions: what goes through the pipeline at once, and what of it is decided at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_relopt.sharding.matrices import world_size
from hf_relopt.step.direction import TravellingMatrix, travelling_matrices
from hf_relopt.step.matrices import MatrixSlot, matrix_slots
from hf_relopt.step.slot import Slot

if TYPE_CHECKING:
    from hf_relopt.step.bundle import Bundle

# Entries whose directions a rank has at hand at the same time, unless one tensor has more.
_PORTION = 2**26
# Of a small model an accelerator has this part at hand, so that directions in bfloat16 and the
# products that they are made of take a quarter of the weights in float32 at most; but a few
# matrices, which fill it.
_ACCELERATOR_PORTION, _FILLS = 1 / 8, 2**24
# Where processes share the work, each has as many, up to this part of the whole.
_SHARED_PORTION = 1 / 8
# A CPU, which launches nothing, has no more than this part of the whole at hand, so that directions
# and what they are made of take less than a quarter of the weights.
_CPU_PORTION, _LEAST_PORTION = 1 / 16, 2**22


@dataclass(frozen=True, eq=False)
class Joint:
    """Bundles of one formula whose packed numbers follow each other: they are decided at once."""

    bundles: tuple[Bundle, ...]

    @cached_property
    def slices(self) -> slice:
        """Picks the numbers of all their slices."""
        return slice(self.bundles[0].slices.start, self.bundles[-1].slices.stop)

    @cached_property
    def owner(self) -> slice | Tensor:
        """Picks the number of the slot of each slice."""
        owner = self.bundles[0].numbers.owner
        # Where each slot has one slice they have the same places.
        return self.slices if owner is None else owner[self.slices]

    @cached_property
    def is_noisy(self) -> bool:
        """True if one of their weights is rounded stochastically."""
        return any([bundle.first.is_noisy for bundle in self.bundles])

    @cached_property
    def p_bound(self) -> float | Tensor | None:
        """The bound in force: one for all slices, or one for each."""
        bounds: list[Any] = [bundle.method.options.get("p_bound") for bundle in self.bundles]
        if len(set(bounds)) == 1:
            return bounds[0]
        like = self.bundles[0].numbers.numel
        each = [
            like.new_full((bundle.slices.stop - bundle.slices.start,), float(bound))
            for bundle, bound in zip(self.bundles, bounds, strict=True)
        ]
        return torch.cat(each)


def joints(bundles: Sequence[Bundle]) -> list[Joint]:
    """What of some bundles is decided at once."""
    runs: list[list[Bundle]] = []
    for bundle in bundles:
        before = runs[-1][-1] if runs else None
        if (
            before is not None
            and before.numbers is bundle.numbers
            and before.end == bundle.begin
            and before.first.formula == bundle.first.formula
        ):
            runs[-1].append(bundle)
        else:
            runs.append([bundle])
    return [Joint(tuple(run)) for run in runs]


@dataclass(frozen=True, eq=False)
class Portion:
    """Bundles whose directions exist at the same time."""

    bundles: tuple[Bundle, ...]

    @cached_property
    def with_slices(self) -> list[Bundle]:
        """Those that have something to apply: of no experts, or no rows here, there is nothing."""
        return [bundle for bundle in self.bundles if any(bundle.views)]

    @cached_property
    def without_slices(self) -> list[Bundle]:
        """All others."""
        return [bundle for bundle in self.bundles if not any(bundle.views)]

    @cached_property
    def rows(self) -> list[Joint]:
        """What of them may be stepped in one look each: rows, which are on one rank."""
        return [Joint((bundle,)) for bundle in self.with_slices if _is_looked_at_once(bundle)]

    @cached_property
    def joints(self) -> list[Joint]:
        """What of the others is decided at once."""
        return joints([each for each in self.with_slices if not _is_looked_at_once(each)])

    @cached_property
    def travelling(self) -> list[TravellingMatrix]:
        """The momenta that are orthogonalized together with other ranks."""
        return travelling_matrices([bundle.slots for bundle in self.bundles])

    @cached_property
    def matrices(self) -> list[MatrixSlot]:
        """The momenta that this rank orthogonalizes by itself."""
        found = matrix_slots([bundle.slots for bundle in self.bundles], "spectral")
        away = {(each.bundle, each.place) for each in self.travelling}
        return [each for each in found if (each.bundle, each.place) not in away]

    @cached_property
    def uneven(self) -> list[MatrixSlot]:
        """The orthogonalized momenta whose neurons get one size."""
        found = matrix_slots([bundle.slots for bundle in self.bundles], "spectral")
        return [each for each in found if each.slot.method.factors]

    @cached_property
    def unbalanced(self) -> list[MatrixSlot]:
        """The gradients whose rows and columns are to be balanced."""
        return matrix_slots([bundle.slots for bundle in self.bundles], "sinkhorn")

    @cached_property
    def factored(self) -> list[MatrixSlot]:
        """The gradients that are followed over the sizes of their rows and columns."""
        return matrix_slots([bundle.slots for bundle in self.bundles], "factored")


def _is_looked_at_once(bundle: Bundle) -> bool:
    """True if its backend steps its rows with one look at each, as far as they fit."""
    return (
        bundle.backend.step_in_one_look is not None
        and bundle.method.scale == "row"
        and not bundle.first.rests_untouched
    )


def portions(bundles: Sequence[Bundle]) -> list[Portion]:
    """Cut ``bundles`` by the slots' numbers, so that every rank cuts alike.

    Sharded weights come first and by themselves: of plain tensors a rank has those that it saw a
    gradient of, and these must not decide where a collective begins.
    """
    found: list[Portion] = []
    for sharded in (True, False):
        some = [bundle for bundle in bundles if bundle.layout.sharded is sharded]
        members = sorted(
            (slot.number, b, t)
            for b, bundle in enumerate(some)
            for t, slot in enumerate(bundle.slots)
        )
        sizes = [_entries(some[b].slots[t]) for _, b, t in members]
        limit = _PORTION if sharded else _copies_at_once(some, sum(sizes))
        for places in _cut_by_size(sizes, limit):
            chosen: dict[int, list[int]] = {}
            for _, b, t in members[places]:
                chosen.setdefault(b, []).append(t)
            # By their numbers in a row, since a bundle's slots are in that order.
            own = [some[b].only(t[0], t[-1] + 1) for b, t in sorted(chosen.items())]
            found.append(Portion(tuple(own)))
    return found


def _entries(slot: Slot) -> int:
    """Entries that a rank holds of a weight, or the rank that holds most."""
    return -(-slot.layout.shape.numel() // slot.layout.shards)


def _copies_at_once(bundles: Sequence[Bundle], entries: int) -> int:
    """Entries in a portion of full tensors that have ``entries`` together.

    Ranks that share the work need a matrix each, which may be more than fit in one portion. Each
    rank holds the results of all, so that there is a limit.
    """
    if not any([bundle.method.options["share_work"] for bundle in bundles]):
        if any([bundle.first.device.type != "cpu" for bundle in bundles]):
            return min(_PORTION, max(_FILLS, int(entries * _ACCELERATOR_PORTION)))
        return min(_PORTION, max(_LEAST_PORTION, int(entries * _CPU_PORTION)))
    return max(_PORTION, min(_PORTION * world_size(), int(entries * _SHARED_PORTION)))


def _cut_by_size(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    begin, entries = 0, 0
    for place, size in enumerate(sizes):
        if place > begin and entries + size > limit:
            yield slice(begin, place)
            begin, entries = place, 0
        entries += size
    if sizes:
        yield slice(begin, len(sizes))
