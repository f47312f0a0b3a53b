"""Telemetry: a probe around apply, which measures on the weights what a step really changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_relopt.sharding.layout import local
from hf_relopt.sharding.reduce import all_reduced
from hf_relopt.step.slot import Slot
from hf_relopt.step.state import widest

# A weight is at its bound if it is there to within float32 rounding.
_NEARLY = 1 - 1e-5


@dataclass
class Seen:
    """One slot, and the sums that its step has left.

    Attributes:
        counts: False if it was not stepped after all.
        sums: [6] of this rank's shard, then of the full tensor: |dW|^2, |W|^2 before and after,
            changed entries, entries at their bound, entries.
    """

    slot: Slot
    counts: bool = True
    sums: Tensor = field(default_factory=lambda: torch.zeros(6))

    @property
    def by_row(self) -> bool:
        """True if each row has a bound of its own."""
        return self.slot.method.scale == "row"

    @property
    def anchor_norm(self) -> Tensor:
        """|W0|, or 0 for a rule without an anchor: such a tensor has no bound."""
        state = self.slot.state
        anchors = state.get("anchor_norm", state["skipped"].new_zeros(1))
        return torch.linalg.vector_norm(local(anchors))

    def rows_at_bound(self, part: Tensor) -> Tensor:
        """How many entries of ``part`` are in rows that are at their bound."""
        method, anchors = self.slot.method, local(self.slot.state["anchor_norm"])
        bound = method.rule.largest_norm(anchors, method.options)
        norms = torch.linalg.vector_norm(part.flatten(1).float(), dim=1)
        return (norms >= _NEARLY * bound).sum() * (part.numel() // max(len(part), 1))

    def at_bound(self) -> float:
        """Share of this tensor that is held at its bound; blocks count as one."""
        _, _, after, _, held, entries = self.sums.tolist()
        if self.by_row:
            return held / max(entries, 1)
        method = self.slot.method
        bound = method.rule.largest_norm(self.anchor_norm, method.options)
        norm_is_held = bool(after**0.5 >= _NEARLY * float(bound))
        return max(float(norm_is_held), held / max(entries, 1))


class Measurement:
    """Sums over one step; costs a copy of one tensor at a time, and no synchronisation."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []

    @property
    def empty(self) -> bool:
        """True until a step has been measured."""
        return not self._seen

    @contextmanager
    def around(self, slot: Slot) -> Iterator[Seen]:
        """Record what the body, which steps ``slot``, has changed."""
        part = local(slot.param.detach())
        before = part.clone()
        seen = Seen(slot)
        yield seen
        if seen.counts:
            method = slot.method
            numel = slot.layout.shape.numel()
            largest = method.rule.largest_entry(seen.anchor_norm, numel, method.options)
            seen.sums = _sums(before, part, largest)
            if seen.by_row:
                seen.sums[4] = seen.rows_at_bound(part)
            self._seen.append(seen)

    def finish(self) -> None:
        """Add up over shards, once: every rank has to measure the same step."""
        batches: dict[object, list[Seen]] = {}
        for seen in sorted(self._seen, key=lambda seen: seen.slot.number):
            kind = seen.sums.device, seen.slot.layout.groups
            batches.setdefault(kind, []).append(seen)
        whole = all_reduced(
            [torch.stack([seen.sums for seen in batch]) for batch in batches.values()],
            [batch[0].slot.layout for batch in batches.values()],
        )
        for batch, rows in zip(batches.values(), whole, strict=True):
            for seen, row in zip(batch, rows.unbind(), strict=True):
                seen.sums = row

    def figures(self) -> dict[str, float]:
        """The figures as floats; waits for the device."""
        rows = [seen.sums.tolist() for seen in self._seen]
        moved, norm, _, changed, _, entries = (sum(column) for column in zip(*rows, strict=True))
        return {
            "relative_update": (moved / norm) ** 0.5 if norm > 0 else 0.0,
            "at_bound": sum(seen.at_bound() for seen in self._seen) / max(len(self._seen), 1),
            "changed_entries": changed / max(entries, 1),
        }


def _sums(before: Tensor, after: Tensor, largest: Tensor) -> Tensor:
    dtype = widest(before.device)
    held = (after.abs() >= _NEARLY * largest).sum()
    changed = (before != after).sum()
    norms = [torch.linalg.vector_norm(tensor.float()).to(dtype) for tensor in (before, after)]
    moved = torch.linalg.vector_norm(before.sub_(after).float()).to(dtype)
    entries = torch.full((), after.numel(), dtype=dtype, device=after.device)
    squares = [norm * norm for norm in (moved, *norms)]
    return torch.stack([*squares, changed.to(dtype), held.to(dtype), entries])
