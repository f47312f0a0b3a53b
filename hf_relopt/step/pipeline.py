"""The pipeline: moments, direction, sums, one all-reduce, decide, apply, for every method.

A direct method follows the gradients themselves, which are summed once. Any other first lets its
moments take the gradients in, which asks whether they are usable, and then sums the directions that
come of them. Directions take as much room as the weights while they exist, so these weights go
through the rest of the pipeline in portions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends.part import Decision, Direct, Part
from hf_relopt.rules import fromage
from hf_relopt.rules.rule import Sums
from hf_relopt.sharding.layout import local_grad
from hf_relopt.sharding.reduce import all_reduced, full_norms
from hf_relopt.step.bundle import Bundle
from hf_relopt.step.decide import (
    DecideOne,
    Judged,
    Judging,
    Verdict,
    norms_of,
    with_anchors,
)
from hf_relopt.step.direction import directions
from hf_relopt.step.formulas import deciding, known_of, run_on
from hf_relopt.step.lineup import Lineup, Slots
from hf_relopt.step.moments import take_in
from hf_relopt.step.numbers import Numbers
from hf_relopt.step.one_look import step_rows
from hf_relopt.step.portions import Joint, Portion
from hf_relopt.step.telemetry import Measurement


def step(
    slots: Slots,
    probe: Measurement | None,
    *,
    beside: Collection[int] = (),
    only: Collection[int] | None = None,
) -> None:
    """Step every slot that takes part.

    Args:
        probe: measures what apply changes, or None.
        beside, only: numbers of slots to leave out, and to keep to: see ``Slots.taking_part``.
    """
    everyone = lineup = slots.taking_part(beside, only)
    if lineup.alone:
        done = _step_alone(lineup.alone, slots, probe)
        lineup = slots.taking_part([*beside, *done], only)
    for numbers in lineup.copies:
        numbers.fetch()
    sharded = [slot for bundle in lineup.sharded for slot in bundle.slots]
    for slot in sharded:
        slot.grad = local_grad(slot.param)
    try:
        _step(lineup, slots, probe)
    finally:
        for slot in sharded:
            slot.grad = None
    for numbers in lineup.copies:
        numbers.put_back()
    slots.note_anchors(everyone)


def _step(lineup: Lineup, slots: Slots, probe: Measurement | None) -> None:
    parts, rows = _sums_of_gradients(lineup, slots)
    verdicts = _judge(lineup, rows)
    for joint in lineup.direct:
        _decide_and_apply(joint, rows, parts, verdicts, slots, probe)
    for bundle in lineup.directed:
        if bundle.method.moments is not None and not bundle.follows_momentum:
            take_in(bundle, verdicts[bundle.numbers].judged.learn[bundle.places])
    for portion in lineup.portions:
        _step_portion(portion, verdicts, slots, probe)


def _sums_of_gradients(
    lineup: Lineup, slots: Slots
) -> tuple[dict[Bundle, list[Part]], dict[Bundle, Tensor]]:
    """The norms of the full gradients, and what else direct methods need, of every bundle."""
    parts: dict[Bundle, list[Part]] = {}
    rows: dict[Bundle, Tensor] = {}
    for bundle in lineup.bundles:
        parts[bundle] = bundle.parts_to_judge()
        rows[bundle] = bundle.backend.sums(parts[bundle], _asked(bundle, slots))
    if lineup.sharded:
        layouts = [bundle.layout for bundle in lineup.bundles]
        rows = dict(zip(rows, full_norms(list(rows.values()), layouts), strict=True))
    return parts, rows


def _step_alone(bundles: Sequence[Bundle], slots: Slots, probe: Measurement | None) -> list[int]:
    """Step what a backend takes from its sums to the new weights; return these slots' numbers."""
    stepped: list[int] = []
    for bundle in bundles:
        alone = bundle.backend.step_alone
        assert alone is not None
        work = _direct(bundle, _asked(bundle, slots))
        if probe is None:
            left = set(alone(work))
            stepped += [slot.number for t, slot in enumerate(bundle.slots) if t not in left]
            continue
        for t, slot in enumerate(bundle.slots):
            if probe.alone(bundle, t, work.only(t), alone):
                stepped.append(slot.number)
    return stepped


def _direct(bundle: Bundle, asked: Sums) -> Direct:
    method, numbers = bundle.method, bundle.numbers
    return Direct(
        parts=bundle.parts(),
        equation=bundle.equation,
        sums=asked,
        states=[numbers.own(place) for place in range(bundle.begin, bundle.end)],
        numel=numbers.numel[bundle.slices],
        number=numbers.number[bundle.places] if bundle.first.is_noisy else None,
        lr=_learning_rates(numbers)[0].expand(len(numbers.slots))[bundle.places],
        decide=DecideOne(method, bundle.first.dtype),
    )


def _asked(bundle: Bundle, slots: Slots) -> Sums:
    """What is summed of the gradients. |W| is only looked at if the rule or an anchor needs it."""
    method = bundle.method
    asked = method.sums if method.direct else "grad"
    if asked == "grad" and method.rule.anchored and not slots.are_anchored(bundle):
        return "norms"
    return asked


def _judge(lineup: Lineup, rows: dict[Bundle, Tensor]) -> dict[Numbers, Verdict]:
    """Judge the gradients by their norms, and count, on each device."""
    verdicts: dict[Numbers, Verdict] = {}
    for numbers, bundles in lineup.on_devices:
        own = list(map(rows.__getitem__, bundles))
        grad_norm, param_norm = _joined([row[:, 0] for row in own]), None
        if any([row.size(1) > 1 for row in own]):
            param_norm = _joined([row[:, -1 if row.size(1) == 1 else 1] for row in own])
        counts = {"step": numbers.step, "skipped": numbers.skipped}
        given = {"grad_norm": grad_norm, "largest": numbers.largest, **counts}
        found = bundles[0].backend.work_out(Judging(), given, counts)
        judged = Judged(found["finite"], found["learn"])
        learn, (lr, moves) = judged.learn, _learning_rates(numbers)
        if numbers.owner is not None:
            learn = learn.index_select(0, numbers.owner)
            lr = lr.index_select(0, numbers.owner) if lr.dim() else lr
        verdicts[numbers] = Verdict(judged, grad_norm, param_norm, learn, lr, moves)
    return verdicts


def _learning_rates(numbers: Numbers) -> tuple[Tensor, bool]:
    """The learning rate of all slots, or [T]; and whether it is known that none is zero.

    Those that are tensors stay on their device unread.
    """
    rates: list[Any] = []
    for group in numbers.groups:
        lr, factor = group["lr"], group.get("lr_factor")
        if isinstance(lr, Tensor):
            lr = lr.detach().view(()).to(numbers.numel, non_blocking=True)
        rates.append(lr if factor is None else lr * factor)
    like = numbers.numel
    if any([isinstance(rate, Tensor) for rate in rates]):
        each = [
            torch.as_tensor(rate, dtype=like.dtype).to(like.device, non_blocking=True)
            for rate in rates
        ]
        return torch.stack(each).index_select(0, numbers.group), False
    if numbers.rates is not None and numbers.rates[0] == rates:
        return numbers.rates[1]
    if len(set(rates)) == 1:
        found = like.new_full((), rates[0])
    else:
        made = torch.tensor(rates, dtype=like.dtype).to(like.device, non_blocking=True)
        found = made.index_select(0, numbers.group)
    numbers.rates = rates, (found, 0 not in rates)
    return numbers.rates[1]


def _step_portion(
    portion: Portion,
    verdicts: Mapping[Numbers, Verdict],
    slots: Slots,
    probe: Measurement | None,
) -> None:
    """Directions live no longer than this."""
    sources = dict(zip(portion.bundles, directions(portion, verdicts), strict=True))
    parts = {bundle: bundle.parts(sources[bundle]) for bundle in portion.with_slices}
    left = [
        joint
        for joint in portion.rows
        if probe is not None or not step_rows(joint, parts, verdicts, slots)
    ]
    rows: dict[Bundle, Tensor] = {}
    sharded = False
    for bundle in [bundle for joint in (*left, *portion.joints) for bundle in joint.bundles]:
        rows[bundle] = bundle.backend.sums(parts[bundle], bundle.method.sums)
        sharded |= bundle.layout.sharded
    if sharded:
        layouts = [bundle.first.slice_layout for bundle in rows]
        rows = dict(zip(rows, full_norms(list(rows.values()), layouts), strict=True))
    for joint in (*left, *portion.joints):
        _decide_and_apply(joint, rows, parts, verdicts, slots, probe)
    if probe is not None:
        # Ranks without any of a weight's rows have seen its step, too.
        for bundle in portion.without_slices:
            learn = verdicts[bundle.numbers].judged.learn[bundle.places]
            probe.apply(bundle, (), learn, learn, lambda _: None)


def _decide_and_apply(
    joint: Joint,
    rows: Mapping[Bundle, Tensor],
    parts: Mapping[Bundle, Sequence[Part]],
    verdicts: Mapping[Numbers, Verdict],
    slots: Slots,
    probe: Measurement | None,
) -> None:
    """Step bundles along what is summed of their ``parts`` in ``rows``."""
    verdict = verdicts[joint.bundles[0].numbers]
    learns: list[Tensor] = []
    grad_rms: list[Tensor] = []
    for bundle in joint.bundles:
        if not slots.are_anchored(bundle):
            _make_anchors(bundle, rows[bundle], verdict)
        learn = verdict.learn[bundle.slices]
        if bundle.method.is_running:
            grad_rms.append(run_on(bundle, rows[bundle], learn))
        learns.append(learn & _touched(bundle) if bundle.first.rests_untouched else learn)
    own = list(map(rows.__getitem__, joint.bundles))
    # Of those whose anchors were missing |W| was summed as well.
    width = min([row.size(1) for row in own])
    own = [row if row.size(1) == width else row[:, :width] for row in own]
    rms = _joined(grad_rms) if grad_rms else None
    decision = _decide(joint, _joined(own), _joined(learns), rms, verdict, slots)
    begin = joint.slices.start
    for bundle in joint.bundles:
        decided = decision
        if len(joint.bundles) > 1:
            first, last = bundle.slices.start, bundle.slices.stop
            decided = decision.narrow(first - begin, last - first)
            if not bundle.first.is_noisy:
                decided = replace(decided, keys=None)
        learn = verdict.judged.learn[bundle.places]
        _apply(bundle, parts[bundle], decided, learn, probe)


def _decide(
    joint: Joint,
    rows: Tensor,
    learn: Tensor,
    grad_rms: Tensor | None,
    verdict: Verdict,
    slots: Slots,
) -> Decision:
    """What the step does with each slice."""
    first = joint.bundles[0]
    norms = norms_of(rows, first.method)
    found = {"grad_norm": norms.grad, "param_norm": norms.param, "cosine": norms.cosine}
    found["grad_rms"] = grad_rms
    known = {name: value for name, value in found.items() if value is not None}
    known |= known_of(joint, verdict, learn)
    formula = deciding(joint, verdict, slots)
    return formula.decision(first.backend.work_out(formula, known, {}), learn)


def _make_anchors(bundle: Bundle, rows: Tensor, verdict: Verdict) -> None:
    """Make the anchors of a bundle that are missing, where the gradients are usable."""
    param_norm = norms_of(rows, bundle.method).param
    if param_norm is None or not bundle.method.rule.anchored:
        return
    kept = bundle.numbers.anchor_norm[bundle.slices]
    finite = verdict.judged.finite[bundle.places]
    if bundle.owner is not None:
        finite = finite[bundle.owner]
    share, least = None, 0.0
    if bundle.method.scale == "row":
        share, least = _row_shares(bundle, verdict), fromage.PLACEHOLDER_ROW
    elif bundle.method.scale == "block":
        share, least = _block_shares(bundle, param_norm), fromage.PLACEHOLDER_BLOCK
    kept.copy_(with_anchors(kept.to(param_norm.dtype), param_norm, finite, share, least))
    # A probe looks at the anchors of the state, of which these may be copies.
    bundle.numbers.put_back()


def _row_shares(bundle: Bundle, verdict: Verdict) -> Tensor:
    """What each row would have of its tensor's norm, were that evenly spread."""
    assert verdict.param_norm is not None
    counts = [slot.layout.shape[0] ** 0.5 for slot in bundle.slots]
    whole = verdict.param_norm[bundle.places]
    shares = whole / torch.tensor(counts, dtype=whole.dtype).to(whole.device)
    return shares if bundle.owner is None else shares[bundle.owner]


def _block_shares(bundle: Bundle, norms: Tensor) -> Tensor:
    """The same of blocks, which may differ in size."""
    counts = [slot.slices.count for slot in bundle.slots]
    numels = bundle.numbers.numel[bundle.slices].split(counts)
    each = zip(norms.split(counts), numels, strict=True)
    return torch.cat([n.square().sum().sqrt() * (k / k.sum()).sqrt() for n, k in each])


def _touched(bundle: Bundle) -> Tensor:
    """Which rows or experts have a gradient in this step, bool [S].

    A momentum is normalised: moved by it alone, a row would be stepped as far as those that occur.
    Blocks that are cut from one matrix have their gradients together.
    """
    counts = [
        view.of(grad).reshape(view.count, -1).count_nonzero(dim=1)
        for views, grad in zip(bundle.views, bundle.grads(), strict=True)
        for view in views
    ]
    count = _joined(counts)
    if not bundle.layout.rows_are_whole:
        [count] = all_reduced([count], [bundle.layout])
    return count > 0


def _apply(
    bundle: Bundle,
    parts: Sequence[Part],
    decision: Decision,
    learn: Tensor,
    probe: Measurement | None,
) -> None:
    def update(some: Sequence[Part]) -> None:
        if some:
            bundle.backend.update(some, bundle.equation, decision)

    if probe is None:
        update(parts)
    else:
        probe.apply(bundle, parts, learn, decision.move, update)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
