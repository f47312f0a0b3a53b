"""The pipeline: moments, direction, sums, one all-reduce, decide, apply, for every method.

A direct method follows the gradients themselves, which are summed once. Any other first lets its
moments take the gradients in, which asks whether they are usable, and then sums the directions that
come of them. Directions take as much room as the weights while they exist, so these weights go
through the rest of the pipeline in portions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hf_relopt.backends.part import Decision, Direct, Part
from hf_relopt.rules import fromage
from hf_relopt.rules.rule import Facts, Sums
from hf_relopt.sharding.reduce import all_reduced, full_norms
from hf_relopt.step.bundle import Bundle
from hf_relopt.step.decide import (
    DecideOne,
    Judged,
    decide,
    is_noisy,
    judge,
    norms_of,
    with_anchors,
)
from hf_relopt.step.direction import directions
from hf_relopt.step.lineup import Slots
from hf_relopt.step.moments import take_in
from hf_relopt.step.numbers import Numbers, SomeNumbers
from hf_relopt.step.portions import portions
from hf_relopt.step.telemetry import Measurement


@dataclass(frozen=True)
class Verdict:
    """What is known of the slots on a device once their gradients are judged.

    Attributes:
        judged: [T]: which gradients are usable.
        param_norm: [T], |W| where an anchor is missing.
        learn, lr: whether its slot's gradient is usable, and the learning rate, of each slice, [S].
    """

    judged: Judged
    param_norm: Tensor | None
    learn: Tensor
    lr: Tensor


def step(slots: Slots, probe: Measurement | None) -> None:
    """Step every slot that takes part.

    Args:
        probe: measures what apply changes, or None.
    """
    lineup = slots.taking_part()
    alone = _step_alone(lineup.bundles, slots, probe)
    if alone:
        lineup = slots.taking_part(beside=alone)
    copies = [numbers for numbers in lineup.numbers if isinstance(numbers, SomeNumbers)]
    for numbers in copies:
        numbers.fetch()
    _step_together(lineup.numbers, lineup.bundles, slots, probe)
    for numbers in copies:
        numbers.put_back()


def _step_together(
    packed: Sequence[Numbers], bundles: Sequence[Bundle], slots: Slots, probe: Measurement | None
) -> None:
    parts = [_with_gradients(bundle) for bundle in bundles]
    rows = [
        bundle.backend.sums(own, _asked(bundle, slots))
        for bundle, own in zip(bundles, parts, strict=True)
    ]
    rows = full_norms(rows, [bundle.layout for bundle in bundles])
    verdicts: dict[Numbers, Verdict] = {}
    for numbers in packed:
        own_rows = [row for row, bundle in zip(rows, bundles) if bundle.numbers is numbers]
        verdicts[numbers] = _verdict(numbers, own_rows)
    directed: list[Bundle] = []
    for bundle, own, row in zip(bundles, parts, rows, strict=True):
        verdict = verdicts[bundle.numbers]
        if bundle.method.direct:
            _make_anchors(bundle, row, verdict)
            [decision] = _decide([bundle], [row], [verdict.learn[bundle.slices]], verdict)
            _apply(bundle, own, decision, probe)
        else:
            directed.append(bundle)
            if bundle.method.moments is not None:
                take_in(bundle, verdict.judged.learn[bundle.places])
    for portion in portions(tuple(directed)):
        _step_portion(portion, verdicts, slots, probe)


def _step_alone(
    bundles: Sequence[Bundle], slots: Slots, probe: Measurement | None
) -> frozenset[int]:
    """Step what a backend takes from its sums to the new weights; return these slots' numbers."""
    stepped: list[int] = []
    for bundle in bundles:
        alone, method = bundle.backend.step_alone, bundle.method
        if alone is None or bundle.layout.sharded or not method.direct:
            continue
        work = _direct(bundle, _asked(bundle, slots))
        if probe is None:
            left = alone(work)
            stepped += [slot.number for t, slot in enumerate(bundle.slots) if t not in left]
            continue
        for t, slot in enumerate(bundle.slots):
            with probe.around(slot) as seen:
                seen.counts = not alone(work.only(t))
            if seen.counts:
                stepped.append(slot.number)
    return frozenset(stepped)


def _direct(bundle: Bundle, asked: Sums) -> Direct:
    method, numbers = bundle.method, bundle.numbers
    names = [name for name in method.state if name not in method.buffers]
    noisy = is_noisy(method, bundle.dtype)
    return Direct(
        parts=bundle.parts(bundle.grads()),
        equation=bundle.equation,
        sums=asked,
        states=[{name: slot.state[name] for name in names} for slot in bundle.slots],
        numel=numbers.numel[bundle.slices],
        number=numbers.number[bundle.places] if noisy else None,
        lr=numbers.lr()[bundle.places],
        decide=DecideOne(method, bundle.dtype),
    )


def _asked(bundle: Bundle, slots: Slots) -> Sums:
    """What is summed of the gradients. |W| is only looked at if the rule or an anchor needs it."""
    method = bundle.method
    asked = method.sums if method.direct else "grad"
    if asked == "grad" and method.rule.anchored and not slots.are_anchored(bundle):
        return "norms"
    return asked


def _with_gradients(bundle: Bundle) -> list[Part]:
    if bundle.method.direct:
        return bundle.parts(bundle.grads())
    return list(map(Part, bundle.whole_views, bundle.weights(), bundle.grads()))


def _verdict(numbers: Numbers, rows: Sequence[Tensor]) -> Verdict:
    """Judge the gradients by their norms, and count."""
    judged = judge(_joined([row[:, 0] for row in rows]), numbers.largest)
    numbers.step.add_(judged.learn)
    numbers.skipped.add_(~judged.finite)
    param_norm = None
    if any([row.size(1) > 1 for row in rows]):
        param_norm = _joined([row[:, 1 if row.size(1) > 1 else 0] for row in rows])
    learn, lr = numbers.per_slice(judged.learn), numbers.per_slice(numbers.lr())
    return Verdict(judged, param_norm, learn, lr)


def _step_portion(
    portion: Sequence[Bundle],
    verdicts: dict[Numbers, Verdict],
    slots: Slots,
    probe: Measurement | None,
) -> None:
    """Directions live no longer than this."""
    sources = directions(portion)
    found = [bundle.parts(own) for bundle, own in zip(portion, sources, strict=True)]
    # A tensor of no experts has no slices, and a rank may have no rows.
    work = [(bundle, parts) for bundle, parts in zip(portion, found, strict=True) if parts]
    bundles = [bundle for bundle, _ in work]
    rows = full_norms(
        [bundle.backend.sums(parts, bundle.method.sums) for bundle, parts in work],
        [bundle.slice_layout for bundle in bundles],
    )
    learns = []
    for bundle, row in zip(bundles, rows, strict=True):
        verdict = verdicts[bundle.numbers]
        if not slots.are_anchored(bundle):
            _make_anchors(bundle, row, verdict)
        learn = verdict.learn[bundle.slices]
        learns.append(learn & _touched(bundle) if bundle.rests_untouched else learn)
    for first, last in _decided_together(tuple(bundles)):
        some = slice(first, last)
        verdict = verdicts[bundles[first].numbers]
        decisions = _decide(bundles[some], rows[some], learns[some], verdict)
        for (bundle, parts), decision in zip(work[some], decisions, strict=True):
            _apply(bundle, parts, decision, probe)


@lru_cache(maxsize=256)
def _decided_together(bundles: tuple[Bundle, ...]) -> list[tuple[int, int]]:
    """Runs of bundles of one formula, whose packed numbers follow each other."""
    runs: list[tuple[int, int]] = []
    for place, bundle in enumerate(bundles):
        before = bundles[place - 1] if place else None
        if (
            before is not None
            and before.numbers is bundle.numbers
            and before.end == bundle.begin
            and before.slots[0].formula == bundle.slots[0].formula
        ):
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def _decide(
    bundles: Sequence[Bundle], rows: Sequence[Tensor], learns: Sequence[Tensor], verdict: Verdict
) -> list[Decision]:
    """What the step does with each slice of bundles of one formula that follow each other."""
    first, numbers = bundles[0], bundles[0].numbers
    slices = slice(first.slices.start, bundles[-1].slices.stop)
    norms, method, dtype = norms_of(_joined(rows), first.method), first.method, first.dtype
    wide = norms.grad.dtype
    facts = Facts(
        grad_norm=norms.grad,
        param_norm=norms.param,
        cosine=norms.cosine,
        anchor_norm=numbers.anchor_norm[slices].to(wide),
        step=numbers.per_slice(numbers.step)[slices].to(wide),
        numel=numbers.numel[slices],
        lr=verdict.lr[slices],
        p_bound=_p_bounds(tuple(bundles)),
    )
    number = numbers.per_slice(numbers.number)[slices] if is_noisy(method, dtype) else None
    together = decide(method, dtype, facts, _joined(learns), number)
    if len(bundles) == 1:
        return [together]
    each = [(bundle.slices.start, bundle.slices.stop) for bundle in bundles]
    return [together.narrow(begin - slices.start, end - begin) for begin, end in each]


@lru_cache(maxsize=256)
def _p_bounds(bundles: tuple[Bundle, ...]) -> float | Tensor | None:
    """The bound in force: one for all slices, or one for each."""
    bounds = [bundle.method.options.get("p_bound") for bundle in bundles]
    if len(set(bounds)) == 1:
        return bounds[0]
    counts = [bundle.slices.stop - bundle.slices.start for bundle in bundles]
    like = bundles[0].numbers.numel
    each = zip(counts, bounds, strict=True)
    return torch.cat([like.new_full((count,), bound) for count, bound in each])


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
    anchors = with_anchors(kept.to(param_norm.dtype), param_norm, finite, share, least)
    kept.copy_(anchors)


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
    bundle: Bundle, parts: Sequence[Part], decision: Decision, probe: Measurement | None
) -> None:
    update, equation = bundle.backend.update, bundle.equation
    if probe is None:
        update(parts, equation, decision)
        return
    begin = 0
    for slot, views in zip(bundle.slots, bundle.views, strict=True):
        with probe.around(slot):
            if views:
                update(parts[begin : begin + len(views)], equation, decision)
        begin += len(views)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
