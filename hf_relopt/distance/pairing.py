"""Which weight of one network belongs to which of the other, and what has no partner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hf_relopt.distance.weights import Weights
from hf_relopt.errors import ConfigError


@dataclass(frozen=True)
class Apart:
    """A tensor that the totals leave out.

    Attributes:
        name: of the tensor.
        reason: why it is left out.
        update_norm: |dW|, where there is one, as for a weight that was zero before.
    """

    name: str
    reason: str
    update_norm: float | None = None


@dataclass(frozen=True)
class Pairs:
    """Names of the same weight on both sides, and what stands alone.

    Attributes:
        names: (before, after), in network order.
        apart: what has no partner of its shape.
        prefix: what the names of one side have in front of the other's; empty if they are equal.
    """

    names: list[tuple[str, str]]
    apart: list[Apart]
    prefix: str = ""


def paired(before: Weights, after: Weights) -> Pairs:
    """Pair the weights of two networks by name and shape.

    A body and the same body inside a model with a head differ by a prefix of all names, which is
    found and taken off.

    Raises:
        ConfigError: they have no weight in common.
    """
    prefix, long_side = _prefix(list(before.shapes), list(after.shapes))
    in_before, in_after = (prefix if long_side == side else "" for side in ("before", "after"))
    here, there = _by_common_name(before, in_before), _by_common_name(after, in_after)
    _meet(here, there, before.aliases, in_before)
    _meet(there, here, after.aliases, in_after)
    names: list[tuple[str, str]] = []
    apart: list[Apart] = []
    for common, name in here.items():
        other = there.get(common)
        if other is None:
            apart.append(Apart(name, after.others.get(common, "only before")))
        elif before.shapes[name] != after.shapes[other]:
            shapes = list(before.shapes[name]), list(after.shapes[other])
            apart.append(Apart(name, f"shape {shapes[0]}, then {shapes[1]}"))
        else:
            names.append((name, other))
    apart += [
        Apart(name, before.others.get(common, "only after"))
        for common, name in there.items()
        if common not in here
    ]
    known = {entry.name for entry in apart} | set(here) | set(there)
    others = {**before.others, **after.others}
    apart += [Apart(name, reason) for name, reason in others.items() if name not in known]
    if not names:
        raise ConfigError(_nothing_in_common(before, after, apart))
    if after.in_order and not before.in_order:
        place = {name: number for number, name in enumerate(after.shapes)}
        names.sort(key=lambda pair: place[pair[1]])
    return Pairs(names, apart, prefix)


def _by_common_name(weights: Weights, prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): name for name in weights.shapes}


def _meet(
    side: dict[str, str], other: dict[str, str], aliases: dict[str, str], prefix: str
) -> None:
    """Call a tied weight by the one of its names that the other side knows."""
    for alias, own in aliases.items():
        common, further = own.removeprefix(prefix), alias.removeprefix(prefix)
        if common not in other and further in other and common in side:
            side[further] = side.pop(common)


def _prefix(before: list[str], after: list[str]) -> tuple[str, str]:
    """What the names of one side have in front, and which side it is."""
    if set(before) & set(after):
        return "", "neither"
    best, where, most = "", "neither", 0
    for side, longer, shorter in (("after", after, before), ("before", before, after)):
        heads = {name.partition(".")[0] for name in longer}
        for head in sorted(heads):
            stripped = {name.removeprefix(f"{head}.") for name in longer}
            hits = len(stripped & set(shorter))
            if hits > most:
                best, where, most = f"{head}.", side, hits
    return best, where


def _nothing_in_common(before: Weights, after: Weights, apart: Iterable[Apart]) -> str:
    shapes = [entry for entry in apart if entry.reason.startswith("shape ")]
    if shapes:
        first = shapes[0]
        return (
            f"{before.label} and {after.label} are networks of different sizes: {first.name} has "
            f"{first.reason}, and no weight has the same shape in both. Compare two states of one "
            "network."
        )
    names = [next(iter(side.shapes), "none") for side in (before, after)]
    return (
        f"{before.label} and {after.label} have no weight in common: the first of one is "
        f"{names[0]}, of the other {names[1]}. They are different architectures; compare two "
        "states of one network."
    )
