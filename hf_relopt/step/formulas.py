"""Formulas of a step: those that decide on some slices, and the packed numbers that they take."""

from __future__ import annotations

from torch import Tensor

from hf_relopt.rules.rule import RUNNING_NUMBERS
from hf_relopt.step.bundle import Bundle
from hf_relopt.step.decide import Deciding, RunningOn, Verdict, as_decided, norms_of
from hf_relopt.step.lineup import Slots
from hf_relopt.step.portions import Joint


def deciding(joint: Joint, verdict: Verdict, slots: Slots) -> Deciding:
    """The formula that decides on slices."""
    first, p_bound = joint.bundles[0], joint.p_bound
    return Deciding(
        as_decided(first.method),
        first.first.precision,
        None if isinstance(p_bound, Tensor) else p_bound,
        verdict.moves,
        any(map(slots.may_start_at_zero, joint.bundles)),
    )


def known_of(joint: Joint, verdict: Verdict, learn: Tensor) -> dict[str, Tensor]:
    """What it takes beside what is summed of them, and their running root mean squares."""
    numbers, slices = joint.bundles[0].numbers, joint.slices
    found = {
        "anchor_norm": numbers.anchor_norm[slices],
        "step": numbers.step[joint.owner],
        "numel": numbers.numel[slices],
        "lr": verdict.lr[slices] if verdict.lr.dim() else verdict.lr,
        "learn": learn,
    }
    if isinstance(joint.p_bound, Tensor):
        found["p_bound"] = joint.p_bound
    if joint.is_noisy:
        found["number"] = numbers.number[joint.owner]
    return found


def run_on(bundle: Bundle, rows: Tensor, learn: Tensor) -> Tensor:
    """Take the norms of slices' gradients into their running root mean squares; return these."""
    kept = running_numbers(bundle)
    given = {
        **kept,
        "grad_norm": norms_of(rows, bundle.method).grad,
        "numel": bundle.numbers.numel[bundle.slices],
        "learn": learn,
    }
    formula = RunningOn(bundle.method.options["beta"])
    return bundle.backend.work_out(formula, given, kept)["rms"]


def running_numbers(bundle: Bundle) -> dict[str, Tensor]:
    """What is kept of the sizes of slices' gradients, [S] each, by name."""
    return {name: bundle.numbers.of_slices[name][bundle.slices] for name in RUNNING_NUMBERS}
