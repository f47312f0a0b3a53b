"""Optimizers that are names for settings of Fromage as a frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_relopt.groups import Preset

# Of an embedding's rows a step may touch few, and those by their own size; a head is its mirror
# image. Neither maps one space of features to another, where equal singular values make sense.
_BY_ROW: Mapping[str, Any] = {"direction": "momentum", "scale": "row"}


def _preset(direction: str) -> Preset:
    return Preset(
        rule="fromage",
        others={"direction": direction},
        roles={"embedding": _BY_ROW, "head": _BY_ROW},
        cut=("matrix",),
        # As good as any from .01 on in small runs of 1,500 and 2,000 steps, and better in shorter
        # ones: benchmarks/results/quality_widths_cpu_202611.md.
        from_scratch_lr=0.02,
    )


PRESETS: dict[str, Preset] = {
    "fromage_spectral": _preset("spectral"),
    "fromage_momentum": _preset("momentum"),
}


def rule_of_name(optim: str) -> str:
    """The rule that an optimizer's weights follow unless an override says otherwise."""
    return PRESETS[optim].rule if optim in PRESETS else optim


def follows_spectral(optim: str, options: Mapping[str, Any]) -> bool:
    """True if matrices would follow direction "spectral", unless an override says otherwise."""
    given = PRESETS[optim].others if optim in PRESETS else {}
    return {**given, **options}.get("direction") == "spectral"
