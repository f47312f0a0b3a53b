"""Advice: what the numbers of a run say that a user would want to know, each thing once.

What can get worse (layers that grow, gradients that are not finite) is said again when there is
twice as much of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_relopt.lns.tensor import lns_of
from hf_relopt.plans.plan import followed_lr
from hf_relopt.rules.rounding import ROUNDED_DTYPES
from hf_relopt.step.measured import LayerStep, Measured
from hf_relopt.telemetry.network import Layer
from hf_relopt.telemetry.snapshots import Since

# Of the entries that a step was to change; and of all since a snapshot, where there is one.
_MANY_STUCK, _MOST_STUCK = 0.75, 0.5
# Below this peak nothing is learned by steps that are relative: defaults are 0.001 to 0.03.
_FAR_BELOW = 1e-4
_GROWN = 2.0
_MOST_HELD, _IN_A_ROW = 0.5, 3
# Of entries in codes: at conversion two percent of a trained model's are there in 8 bits.
_MOST_SMALLEST = 0.1
_NAMED = 3


@dataclass
class Advice:
    """What was said, and what it takes to say more.

    Attributes:
        layers: in network order.
        start_norms: |W| of each where training began; None where nobody knows.
        skipped: gradients that were not finite before this run.
    """

    layers: Sequence[Layer]
    start_norms: Sequence[float | None]
    skipped: int = 0
    _said: set[str] = field(default_factory=set)
    _grown: set[int] = field(default_factory=set)
    _grown_said: int = 0
    _skipped_said: int = 0
    _held: dict[str, int] = field(default_factory=dict)

    def on_step(self, measured: Measured, step: int, since: Since | None) -> Iterator[str]:
        """Sentences on a step that was measured."""
        found = {layer.slot.number: layer for layer in measured.layers}
        yield from self._low_lr()
        yield from self._stalled(measured.layers, step, since)
        yield from self._growth(found)
        yield from self._bounds(found)
        yield from self._ends(found)
        yield from self._not_finite(found, measured)

    def _once(self, cause: str) -> bool:
        new = cause not in self._said
        self._said.add(cause)
        return new

    def _low_lr(self) -> Iterator[str]:
        for group in _groups(self.layers):
            lr = followed_lr(group)
            if group["rule"] == "adamw" or not 0 < lr < _FAR_BELOW or not self._once("lr"):
                continue
            yield (
                f"lr {lr:g} is far below what a relative rule needs: a step changes a weight by "
                f"{lr:.2g} of its norm. 0.001 suits fine-tuning, 0.01 and more training from "
                "scratch and adapters."
            )

    def _stalled(
        self, layers: Sequence[LayerStep], step: int, since: Since | None
    ) -> Iterator[str]:
        """Entries that rounding to nearest leaves as they are, in the large part of a schedule."""
        by_dtype: dict[torch.dtype, list[LayerStep]] = {}
        for layer in layers:
            slot = layer.slot
            # What stands still because it is held is no matter of resolution.
            held = layer.at_bound > 0 and _needed_lr(layer) <= followed_lr(slot.group)
            if layer.followed and not (held or slot.is_noisy) and _is_near_its_peak(slot.group):
                by_dtype.setdefault(slot.dtype, []).append(layer)
        for dtype, own in by_dtype.items():
            share = sum(each.unchanged for each in own) / sum(each.followed for each in own)
            when = f"of the entries that step {step} was to change stayed as they were"
            word = str(dtype).removeprefix("torch.")
            if share < _MANY_STUCK:
                continue
            if since is not None and since.unchanged is not None:
                still = sum(since.unchanged[each.slot.number] for each in own)
                share = still / sum(each.entries for each in own)
                when = f"of entries did not change in the last {since.steps} steps"
                if share < _MOST_STUCK:
                    continue
            if not self._once(f"stalled {word}"):
                continue
            worst = max(own, key=lambda each: each.unchanged)
            yield f"{share:.0%} {when}: {_remedy(worst, word)}."

    def _growth(self, found: Mapping[int, LayerStep]) -> Iterator[str]:
        new: list[tuple[str, float]] = []
        for layer, start in zip(self.layers, self.start_norms, strict=True):
            now = found.get(layer.number)
            if now is None or not now.measured or not layer.is_matrix or not start:
                continue
            ratio = now.norm / start
            if ratio >= _GROWN and math.isfinite(ratio) and layer.number not in self._grown:
                self._grown.add(layer.number)
                new.append((layer.name, ratio))
        if new and len(self._grown) >= 2 * self._grown_said:
            self._grown_said = len(self._grown)
            ratios = sorted(ratio for _, ratio in new)
            times = f"x {ratios[0]:.2g}" + (f" to {ratios[-1]:.2g}" if len(new) > 1 else "")
            so_far = f"; {len(self._grown)} so far" if len(self._grown) > len(new) else ""
            names = _names([name for name, _ in new])
            whose = "its" if len(new) == 1 else "their"
            yield f"{names} doubled {whose} norm since the start ({times}{so_far})."

    def _bounds(self, found: Mapping[int, LayerStep]) -> Iterator[str]:
        """Weights that could not grow in several steps in a row."""
        tensors = [(layer, found[layer.number]) for layer in self.layers if layer.number in found]
        bounded = [each for each in tensors if each[1].measured and _p_bound(each[0]) > 1]
        held = [each for each in bounded if each[1].at_bound >= _MOST_HELD]
        if self._in_a_row("p_bound", bool(bounded) and len(held) > _MOST_HELD * len(bounded)):
            bounds = sorted({_p_bound(layer) for layer, _ in held})
            yield (
                f"{len(held)} of {len(bounded)} tensors are held at p_bound "
                f"({', '.join(f'{bound:g}' for bound in bounds)}) in each of the last {_IN_A_ROW} "
                f"logged steps ({_names([layer.name for layer, _ in held])}): they cannot become "
                "larger. Raise p_bound if the loss has stopped falling."
            )
        madam = [now for layer, now in tensors if layer.group["rule"] == "madam" and now.measured]
        share = sum(now.at_bound * now.entries for now in madam)
        share /= max(1, sum(now.entries for now in madam))
        if self._in_a_row("p_scale", share > _MOST_HELD):
            scales = sorted(
                {layer.group["p_scale"] for layer, _ in tensors if "p_scale" in layer.group}
            )
            yield (
                f"{share:.0%} of the entries under Madam are held at p_scale "
                f"({', '.join(f'{scale:g}' for scale in scales)}): they cannot become larger. "
                "Raise p_scale, or lower lr."
            )

    def _ends(self, found: Mapping[int, LayerStep]) -> Iterator[str]:
        """Weights in codes that their format has no more room for, on either side."""
        own = [found[layer.number] for layer in self.layers if layer.number in found]
        codes = [layer for layer in own if layer.is_in_codes and layer.measured]
        entries = max(1, sum(layer.entries for layer in codes))
        names = sorted({_format_of(layer) for layer in codes})
        for cause, most, word, way in (
            ("at_smallest", _MOST_SMALLEST, "smallest", "smaller"),
            ("at_bound", _MOST_HELD, "largest", "larger"),
        ):
            share = sum(getattr(layer, cause) * layer.entries for layer in codes) / entries
            if self._in_a_row(f"codes {cause}", share > most):
                yield (
                    f"{share:.0%} of the entries in codes ({', '.join(names)}) are at the {word} "
                    f"level of their format: they cannot become {way}. A format of more bits "
                    "reaches further, and a lower lr moves fewer of them there."
                )

    def _in_a_row(self, cause: str, holds: bool) -> bool:
        self._held[cause] = self._held.get(cause, 0) + 1 if holds else 0
        return self._held[cause] == _IN_A_ROW and self._once(cause)

    def _not_finite(self, found: Mapping[int, LayerStep], measured: Measured) -> Iterator[str]:
        total = sum(layer.skipped for layer in measured.layers) - self.skipped
        if total <= 0 or total < 2 * self._skipped_said:
            return
        self._skipped_said = total
        names = [
            each.name for each in self.layers if each.number in found and found[each.number].skipped
        ]
        yield (
            f"gradients were not finite {total} time{'s' if total != 1 else ''} so far, and their "
            f"weights were left as they were ({_names(names)}). Look at the loss, at the data, or "
            "lower lr; under float16, at the loss scale."
        )


def _format_of(layer: LayerStep) -> str:
    codes = lns_of(layer.slot.param)
    return "" if codes is None else codes.form.name


def _groups(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    return list({id(layer.group): layer.group for layer in layers}.values())


def _is_near_its_peak(group: Mapping[str, Any]) -> bool:
    """False in warm-up and at the end of a schedule, where small steps are meant to be small."""
    peak = float(group.get("initial_lr", group["lr"]))
    return peak > 0 and float(group["lr"]) >= peak / 2


def _remedy(layer: LayerStep, dtype: str) -> str:
    """What to do about a weight whose updates are rounded away."""
    slot = layer.slot
    lr, needed = followed_lr(slot.group), _needed_lr(layer)
    rounding = "use stochastic rounding" if slot.dtype in ROUNDED_DTYPES else ""
    if needed <= lr:  # many entries have updates far below the mean
        return f"their updates at lr {lr:g} are below {dtype}'s resolution; " + (
            rounding or "use a larger lr"
        )
    larger = f"{'or ' if rounding else 'use '}lr >= {_one_digit_up(needed):g}"
    return f"lr {lr:g} is below {dtype}'s resolution; " + f"{rounding} {larger}".strip()


def _needed_lr(layer: LayerStep) -> float:
    """The learning rate from which on a typical entry changes.

    An entry w changes if its update is more than half of the spacing there, which is between eps/4
    and eps/2 of w. Fromage moves entries by lr times the root mean square of W in the mean, and
    small entries, whose spacing is finer, by no less; Madam moves each by lr of itself.
    """
    slot = layer.slot
    eps = torch.finfo(slot.dtype).eps
    rule = slot.group["rule"]
    if rule == "adamw":
        return eps / 4 * layer.norm / max(layer.entries, 1) ** 0.5
    return eps / 2 if rule == "madam" else eps / 4


def _one_digit_up(value: float) -> float:
    """The next number of one digit that is not below, but for 3 %: 1.95e-3 is 2e-3."""
    size = 10 ** math.floor(math.log10(value))
    return float(f"{math.ceil(value / size - 0.03) * size:.1g}")


def _p_bound(layer: Layer) -> float:
    bound = layer.group.get("p_bound")
    return 0.0 if bound is None or "entry by entry" in layer.follows else float(bound)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} others" if len(names) > _NAMED else shown
