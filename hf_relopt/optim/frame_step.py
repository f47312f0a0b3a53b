"""A step of Fromage as a frame: what has been remembered becomes a direction, and that a step.

The gradients are in the memory by now (optim/base.py). Directions take as much room as the weights
while they exist, so tensors go through here in portions. Norms of a portion are summed over shards
in one all-reduce.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_relopt.errors import UnsupportedSetup
from hf_relopt.optim.blocks import step_blocks
from hf_relopt.optim.exchange import processes
from hf_relopt.optim.frame import frame_of
from hf_relopt.optim.measure import Measurement
from hf_relopt.optim.memory import Framed, directions
from hf_relopt.optim.places import Places
from hf_relopt.optim.rows import step_rows
from hf_relopt.optim.spectral import make_spectral
from hf_relopt.roles import steps_as_vector
from hf_relopt.sharding import cut_of, is_sharded, parts_of, rows_are_whole

# Entries whose directions a rank has at hand at the same time, unless one tensor has more.
_PORTION = 2**26
# Where processes share the work, each has as many, up to this part of the whole.
_SHARED_PORTION = 1 / 8


def step_framed(
    batches: Sequence[Framed],
    places: Places,
    measurement: Measurement | None,
) -> None:
    """Step every parameter of ``batches``.

    Args:
        places: where parts of sharded tensors lie.
        measurement: takes note of each tensor's step, or None.
    """
    for portion in _portions(batches):
        _step_portion(portion, places, measurement)


def _step_portion(
    portion: Sequence[Framed],
    places: Places,
    measurement: Measurement | None,
) -> None:
    """Directions live no longer than this."""
    found = [directions(batch) for batch in portion]
    make_spectral(portion, found)
    in_blocks = []
    for batch, each in zip(portion, found, strict=True):
        if batch.frame.scale == "row" and batch.memory != "vector":
            step_rows(batch, each, places, measurement)
        else:
            in_blocks.append((batch, each))
    if in_blocks:
        step_blocks(in_blocks, places, measurement)


def refuse_unframeable(group: Mapping[str, Any], param: Tensor, name: str) -> None:
    """Refuse a shard that its group's direction or scale has no use for.

    Raises:
        UnsupportedSetup: a spectral matrix that is sharded over several dimensions of its mesh, or
            rows that are sharded.
    """
    if group["rule"] != "fromage" or steps_as_vector(group, param):
        return
    frame = frame_of(group)
    if frame.direction == "spectral":
        cut_of(param, name)
    if frame.scale == "row" and not rows_are_whole(param):
        raise UnsupportedSetup(
            f"{name} is sharded across its rows ({param.placements}), but scale 'row' needs "  # type: ignore[attr-defined]
            "full rows. Shard its first dimension, or use scale='tensor' for it."
        )


def _portions(batches: Sequence[Framed]) -> Iterator[list[Framed]]:
    """Cut ``batches`` by the parameters' numbers, so that every rank cuts alike.

    DTensors come first and by themselves: of plain tensors a rank has those that it saw a gradient
    of, and these must not decide where a collective begins.
    """
    for sharded in (True, False):
        members = sorted(
            (index, b, t)
            for b, batch in enumerate(batches)
            for t, index in enumerate(batch.indices)
            if is_sharded(batch.params[t]) is sharded
        )
        sizes = [_entries(batches[b].params[t]) for _, b, t in members]
        limit = _PORTION if sharded else _copies_at_once(batches, sum(sizes))
        yield from _cut_by_size(batches, members, sizes, limit)


def _entries(param: Tensor) -> int:
    """Entries that a rank holds of ``param``, or the rank that holds most."""
    return -(-param.numel() // parts_of(param))


def _copies_at_once(batches: Sequence[Framed], entries: int) -> int:
    """Entries in a portion of whole tensors that have ``entries`` together.

    Whoever shares the work needs a matrix for each process, which may be more than fit in one
    portion. Each holds the results of all, so that there is a limit.
    """
    if not any(batch.frame.share_work for batch in batches):
        return _PORTION
    return max(_PORTION, min(_PORTION * processes(), int(entries * _SHARED_PORTION)))


def _cut_by_size(
    batches: Sequence[Framed],
    members: Sequence[tuple[int, int, int]],
    sizes: Sequence[int],
    limit: int,
) -> Iterator[list[Framed]]:
    portion: dict[int, list[int]] = {}
    entries = 0
    for (_, b, t), size in zip(members, sizes, strict=True):
        if portion and entries + size > limit:
            yield [batches[b].only(places) for b, places in portion.items()]
            portion, entries = {}, 0
        portion.setdefault(b, []).append(t)
        entries += size
    if portion:
        yield [batches[b].only(places) for b, places in portion.items()]
