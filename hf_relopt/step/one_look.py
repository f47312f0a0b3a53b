"""Rows in one look: summed, decided on and stepped by a backend that does all of it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_relopt.backends.part import OneLook, Part
from hf_relopt.step.bundle import Bundle
from hf_relopt.step.decide import InOneLook, RunningOn, Verdict
from hf_relopt.step.formulas import deciding, known_of, running_numbers
from hf_relopt.step.lineup import Slots
from hf_relopt.step.numbers import Numbers
from hf_relopt.step.portions import Joint


def step_rows(
    joint: Joint,
    parts: Mapping[Bundle, Sequence[Part]],
    verdicts: Mapping[Numbers, Verdict],
    slots: Slots,
) -> bool:
    """Step rows as far as their backend does so; say whether it did."""
    (bundle,) = joint.bundles
    if not slots.are_anchored(bundle):
        return False
    method, numbers = bundle.method, bundle.numbers
    verdict = verdicts[numbers]
    learn = verdict.learn[bundle.slices]
    running, kept = None, {}
    if method.is_running:
        running, kept = RunningOn(method.options["beta"]), running_numbers(bundle)
    formula = InOneLook(running, deciding(joint, verdict, slots))
    given = {**known_of(joint, verdict, learn), **kept}
    work = OneLook(parts[bundle], bundle.equation, method.sums, formula, given, kept)
    step = bundle.backend.step_in_one_look
    return step is not None and step(work)
