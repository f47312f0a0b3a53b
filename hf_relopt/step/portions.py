"""Portions: what goes through the pipeline at once where directions take room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from hf_relopt.sharding.matrices import processes
from hf_relopt.step.lineup import Bundle
from hf_relopt.step.slot import Slot

# Entries whose directions a rank has at hand at the same time, unless one tensor has more.
_PORTION = 2**26
# Where processes share the work, each has as many, up to this part of the whole.
_SHARED_PORTION = 1 / 8


@lru_cache(maxsize=256)  # the same in each step
def portions(bundles: tuple[Bundle, ...]) -> list[tuple[Bundle, ...]]:
    """Cut ``bundles`` by the slots' numbers, so that every rank cuts alike.

    Sharded weights come first and by themselves: of plain tensors a rank has those that it saw a
    gradient of, and these must not decide where a collective begins.
    """
    found: list[tuple[Bundle, ...]] = []
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
            found.append(tuple([some[b].only(t[0], t[-1] + 1) for b, t in sorted(chosen.items())]))
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
        return _PORTION
    return max(_PORTION, min(_PORTION * processes(), int(entries * _SHARED_PORTION)))


def _cut_by_size(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    begin, entries = 0, 0
    for place, size in enumerate(sizes):
        if place > begin and entries + size > limit:
            yield slice(begin, place)
            begin, entries = place, 0
        entries += size
    if sizes:
        yield slice(begin, len(sizes))
