"""Distance: how far each layer of a network has moved, and what that bounds for the whole."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_relopt.distance.pairing import Apart
from hf_relopt.rules.distance import deep_relative_trust, largest_lr, log_deep_relative_trust


@dataclass(frozen=True)
class LayerDistance:
    """One weight in two states, W before and W' after.

    Attributes:
        name: of the weight.
        shape: of the full weight.
        norm: |W|, Frobenius.
        update_norm: |W' - W|.
        relative_update: r = |W' - W| / |W|.
        cosine: of the angle between W and W'; 0 if W' is zero.
        sign_changes: share of entries that have changed from positive to negative or back.
        changed: share of entries that differ.
        spectral_norm: largest singular value of W; None unless asked for, or for a vector.
        spectral_update: largest singular value of W' - W over that of W; None likewise.
        stable_rank: (|W| / spectral norm)^2, between 1 and the rank; None likewise.
        update_stable_rank: that of W' - W; None likewise, or where nothing changed.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    update_norm: float
    relative_update: float
    cosine: float
    sign_changes: float
    changed: float
    spectral_norm: float | None = None
    spectral_update: float | None = None
    stable_rank: float | None = None
    update_stable_rank: float | None = None

    @property
    def entries(self) -> int:
        """Numbers in the weight."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it counts as a layer: a weight with two or more dimensions."""
        return len(self.shape) >= 2


@dataclass(frozen=True)
class Measured:
    """What really changed on a batch, to put beside the bound.

    Attributes:
        output_change: |f'(x) - f(x)| / |f(x)| over the network's outputs on the batch.
        loss: (before, after) if the network computes one.
        gradient_change: |g' - g| / |g| of each weight, if asked for.
    """

    output_change: float
    loss: tuple[float, float] | None = None
    gradient_change: dict[str, float] | None = None


@dataclass(frozen=True)
class Distance:
    """How far apart two states of a network are.

    Attributes:
        before, after: what was compared, in words.
        layers: weights with a partner of the same shape that were not zero, in network order.
        apart: tensors that the totals leave out, and why.
        measured: what changed on a batch, if one was given.
        partial: why some of it is missing; None if all was compared.
    """

    before: str
    after: str
    layers: tuple[LayerDistance, ...]
    apart: tuple[Apart, ...] = ()
    measured: Measured | None = None
    partial: str | None = None

    @cached_property
    def matrices(self) -> tuple[LayerDistance, ...]:
        """The layers of the theory: weights with two or more dimensions."""
        return tuple(layer for layer in self.layers if layer.is_matrix)

    @property
    def depth(self) -> int:
        """L, the number of weight matrices; tied ones count once."""
        return len(self.matrices)

    @cached_property
    def log_drt(self) -> float:
        """Sum of log1p r over weight matrices: finite for any depth."""
        return log_deep_relative_trust(layer.relative_update for layer in self.matrices)

    @property
    def drt(self) -> float:
        """Deep relative trust, prod(1 + r) - 1 over weight matrices; inf beyond 1.8e308."""
        return deep_relative_trust(self.log_drt)

    @property
    def log_drt_all(self) -> float:
        """The same sum with vectors (biases, norm weights), which the theorem leaves out."""
        return log_deep_relative_trust(layer.relative_update for layer in self.layers)

    @property
    def drt_all(self) -> float:
        """Deep relative trust with vectors."""
        return deep_relative_trust(self.log_drt_all)

    @property
    def log_spectral_drt(self) -> float | None:
        """The sum with operator norms; None unless they were asked for."""
        found = [layer.spectral_update for layer in self.matrices]
        known = [value for value in found if value is not None]
        return None if len(known) < len(found) or not found else log_deep_relative_trust(known)

    @property
    def spectral_drt(self) -> float | None:
        """DRT in operator norms: the theorem's, for ReLU networks without biases."""
        log = self.log_spectral_drt
        return None if log is None else deep_relative_trust(log)

    @property
    def largest_lr(self) -> float | None:
        """Relative step below which the descent lemma holds at this depth, along -gradient."""
        return largest_lr(self.depth) if self.depth else None

    def to_dict(self) -> dict[str, Any]:
        """Everything, in what JSON can hold: infinite and undefined numbers are None."""
        totals = {
            name: getattr(self, name)
            for name in (
                "drt", "log_drt", "drt_all", "log_drt_all", "spectral_drt", "log_spectral_drt",
                "depth", "largest_lr",
            )
        }  # fmt: skip
        found = {
            "before": self.before,
            "after": self.after,
            "partial": self.partial,
            **totals,
            "measured": None if self.measured is None else asdict(self.measured),
            "layers": [asdict(layer) for layer in self.layers],
            "apart": [asdict(entry) for entry in self.apart],
        }
        return _jsonable(found)

    def to_markdown(self, top: int | None = None) -> str:
        """Totals and a table of layers.

        Args:
            top: show only the so many layers that moved most; all of them, in network order, if
                None.
        """
        from hf_relopt.distance.table import markdown

        return markdown(self, top)

    def to_csv(self) -> str:
        """One line per layer, with a head."""
        from hf_relopt.distance.table import csv_text

        return csv_text(self)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw r of each layer in network order, as a PNG or what else the suffix says."""
        from hf_relopt.distance.figure import draw

        return draw(self, Path(path))


LAYER_FIELDS = tuple(field.name for field in fields(LayerDistance))


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _jsonable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(each) for each in value]
    return value
