"""What a distance says, in sentences and by kind of layer: the first look at three hundred rows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_relopt.distance.result import Distance, LayerDistance

# Relative update of rounding to bfloat16: entries are off by up to half a unit in the last place,
# uniformly, which is .29 units; a unit is between 2^-8 and 2^-7 of an entry.
_ROUNDED = 0.28 * 2.0**-8, 0.28 * 2.0**-7


@dataclass(frozen=True)
class Kind:
    """Layers of the same name but for its numbers.

    Attributes:
        name: with * in place of numbers.
        count: layers.
        middle, largest: of their relative updates.
        share: of the sum of log1p r over all weight matrices; None for vectors.
    """

    name: str
    count: int
    middle: float
    largest: float
    share: float | None


def kinds(distance: Distance) -> list[Kind]:
    """The layers by kind, the one with the largest median first."""
    groups: dict[str, list[LayerDistance]] = {}
    for layer in distance.layers:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", layer.name), []).append(layer)
    found = []
    for name, layers in groups.items():
        updates = [layer.relative_update for layer in layers]
        share = None
        if layers[0].is_matrix and distance.log_drt > 0:
            share = math.fsum(map(math.log1p, updates)) / distance.log_drt
        found.append(Kind(name, len(layers), median(updates), max(updates), share))
    return sorted(found, key=lambda kind: -kind.middle)


def sentences(distance: Distance) -> list[str]:
    """What stands out, most telling first; empty if nothing does."""
    matrices = distance.matrices
    moved = [layer for layer in matrices if layer.update_norm > 0]
    if not matrices:
        return []
    if not any(layer.update_norm > 0 for layer in distance.layers):
        return ["Nothing moved: all weights are equal."]
    found = []
    if _is_rounded(moved):
        found.append("It looks like a copy that was rounded to bfloat16: each entry is that near.")
    if moved and len(moved) < len(matrices):
        still = len(matrices) - len(moved)
        found.append(f"{still} of {len(matrices)} weight matrices did not move at all.")
    if not moved:
        found.append("No weight matrix moved, only biases or norm weights.")
    ranks = [layer.update_stable_rank for layer in moved]
    if known := [rank for rank in ranks if rank is not None]:
        found.append(
            f"The updates act in few directions: their stable rank is {median(known):.3g} in the "
            f"median, that of the weights {_median_rank(moved):.3g}."
            if median(known) < 0.25 * _median_rank(moved)
            else f"The updates' stable rank is {median(known):.3g} in the median, that of the "
            f"weights {_median_rank(moved):.3g}."
        )
    if lone := _outlier(moved):
        ratio = lone.relative_update / median(layer.relative_update for layer in moved)
        found.append(f"{lone.name} moved {ratio:.3g} times as far as the median matrix.")
    return found


def _median_rank(layers: list[LayerDistance]) -> float:
    return median([layer.stable_rank for layer in layers if layer.stable_rank is not None] or [0.0])


def _outlier(moved: list[LayerDistance]) -> LayerDistance | None:
    """The matrix that moved most, if it stands out from the others."""
    if len(moved) < 4:
        return None
    most = max(moved, key=lambda layer: layer.relative_update)
    middle = median(layer.relative_update for layer in moved)
    return most if most.relative_update > 5 * middle else None


def _is_rounded(moved: list[LayerDistance]) -> bool:
    """Whether all matrices have moved as far as rounding to bfloat16 moves them."""
    low, high = _ROUNDED
    near = [low <= layer.relative_update <= high for layer in moved]
    return bool(moved) and all(near) and not any(layer.sign_changes for layer in moved)
