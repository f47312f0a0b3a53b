"""What was measured of one step, on the host: each layer's numbers, and metrics made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hf_relopt.plans.roles import role_in_group
from hf_relopt.rules.distance import deep_relative_trust, log_deep_relative_trust
from hf_relopt.step.slot import Slot

# Quantiles over layers: the end of the metric's name, and which.
QUANTILES = (("p10", 0.1), ("p50", 0.5), ("p90", 0.9), ("max", 1.0))


@dataclass(frozen=True)
class LayerStep:
    """One weight in one step.

    Attributes:
        measured: did it take part in the step?
        stepped: and was its gradient usable?
        update_norm: |dW|.
        norm_before, norm: |W| before and after.
        changed: entries that differ after the step.
        at_bound: share that is held at its bound, of entries, rows, blocks or the tensor.
        followed: entries that the step was to change.
        unchanged: those of them that rounding left as they were.
        skipped: its gradients that were not finite so far.
        at_smallest, at_zero: of a weight in codes, the share of entries at the smallest level, and
            of zeros.
    """

    slot: Slot
    measured: bool
    stepped: bool
    update_norm: float
    norm_before: float
    norm: float
    changed: float
    at_bound: float
    followed: float
    unchanged: float
    skipped: int
    at_smallest: float = 0.0
    at_zero: float = 0.0

    @cached_property
    def role(self) -> str:
        """Its role in the plan, or the one that its shape says."""
        return role_in_group(self.slot.group, self.slot.param)

    @property
    def entries(self) -> int:
        """Of the full tensor."""
        return self.slot.layout.shape.numel()

    @property
    def is_in_codes(self) -> bool:
        """True for a weight that is stored in codes."""
        return self.slot.method.in_codes

    @property
    def is_matrix(self) -> bool:
        """True for what deep relative trust is a product over."""
        return len(self.slot.layout.shape) >= 2

    @property
    def relative_update(self) -> float | None:
        """|dW| / |W|; None where it was not stepped, or was zero."""
        if not self.stepped or self.norm_before == 0:
            return None
        return self.update_norm / self.norm_before

    @property
    def changed_share(self) -> float:
        """Share of entries that differ after the step."""
        return self.changed / max(self.entries, 1)


@dataclass(frozen=True)
class Measured:
    """One step: its layers by their numbers in the optimizer."""

    layers: tuple[LayerStep, ...]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The metrics by name; docs/telemetry.md says what each is."""
        seen = [layer for layer in self.layers if layer.measured]
        found = {
            "relative_update": _relative_update(seen),
            "at_bound": _mean([layer.at_bound for layer in seen]),
            "changed_entries": _share(seen, "changed", "entries"),
            "skipped_tensors": float(sum(layer.skipped for layer in self.layers)),
        }
        # Biases that started at zero change by their own size and more until they are grown.
        updates = [layer.relative_update for layer in seen if layer.is_matrix]
        known = sorted(r for r in updates if r is not None and math.isfinite(r))
        if known:
            found |= {f"relative_update_{name}": quantile(known, q) for name, q in QUANTILES}
        found["step_drt"] = deep_relative_trust(log_deep_relative_trust(known))
        found["unchanged_by_rounding"] = _share(seen, "unchanged", "followed")
        codes = [layer for layer in seen if layer.is_in_codes]
        if codes:
            found["at_smallest_level"] = _weighted([each.at_smallest for each in codes], codes)
            found["at_zero"] = _weighted([each.at_zero for each in codes], codes)
        for role in sorted({layer.role for layer in seen}):
            own = [layer for layer in seen if layer.role == role]
            found[f"relative_update/{role}"] = _relative_update(own)
            found[f"at_bound/{role}"] = _mean([layer.at_bound for layer in own])
        return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the ordered values lie, between two of them if need be."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _relative_update(layers: Sequence[LayerStep]) -> float:
    """|dW| / |W| over all entries of some layers."""
    norm = math.hypot(*[layer.norm_before for layer in layers])
    return math.hypot(*[layer.update_norm for layer in layers]) / norm if norm else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _share(layers: Sequence[LayerStep], what: str, of: str) -> float:
    total = sum(getattr(layer, of) for layer in layers)
    return sum(getattr(layer, what) for layer in layers) / total if total else 0.0


def _weighted(shares: Sequence[float], layers: Sequence[LayerStep]) -> float:
    """The share of all entries, from that of each layer."""
    total = sum(layer.entries for layer in layers)
    each = zip(shares, layers, strict=True)
    return sum(share * layer.entries for share, layer in each) / max(total, 1)
