"""Decide: from norms and state to what a step does with each slice, on packed numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.options.method import Method, method_of
from hf_relopt.rules.facts import Facts
from hf_relopt.rules.rounding import noise_keys
from hf_relopt.step.decide import (
    DecideOne,
    compute_dtype,
    decide,
    judge,
    largest_grad,
    norms_of,
    with_anchors,
)
from tests.frames import BOUNDS
from tests.tensors import gradient, run, same_bits, state_of

NAN, INF = math.nan, math.inf
F64 = torch.float64
TINY = torch.finfo(torch.float32).tiny


def method(kind: Any = Fromage, **options: Any) -> Method:
    param = nn.Parameter(torch.ones(2, 2))
    return method_of(kind([param], **options).param_groups[0], param)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def facts_of(grad_norm: torch.Tensor, lr: torch.Tensor | float, **changes: Any) -> Facts:
    ones = torch.ones_like(grad_norm)
    given = dict(param_norm=ones, cosine=0 * ones, anchor_norm=ones, step=ones, numel=4 * ones)
    return Facts(grad_norm=grad_norm, lr=torch.as_tensor(lr, dtype=F64), **{**given, **changes})


# --- judging ------------------------------------------------------------------------------


@given(st.lists(st.floats(width=64), min_size=1, max_size=8), st.floats(1e-3, 1e300))
def test_a_gradient_is_usable_if_its_norm_is_a_number_below_a_limit(
    norms: list[float], largest: float
) -> None:
    judged = judge(numbers(*map(abs, norms)), largest)
    for norm, finite, learn in zip(map(abs, norms), *(each.tolist() for each in judged),
                                   strict=True):  # fmt: skip
        assert finite is (norm < largest)
        assert learn is (0 < norm < largest)


def test_a_limit_may_differ_from_slot_to_slot() -> None:
    judged = judge(numbers(1.0, 1.0, NAN), numbers(2.0, 0.5, INF))
    assert judged.finite.tolist() == [True, False, False]


def test_the_limit_is_that_of_what_takes_the_gradient_in() -> None:
    f32, root = torch.finfo(torch.float32).max, torch.finfo(torch.float32).max ** 0.5
    assert largest_grad(method(), torch.bfloat16) == f32
    assert largest_grad(method(), F64) == torch.finfo(F64).max
    assert largest_grad(method(Madam), F64) == root, "its square is kept in float32"
    # A momentum is kept in float32, whatever the weight is.
    assert largest_grad(method(direction="momentum"), F64) == f32
    assert largest_grad(method(direction="adam"), torch.float32) == root
    low = method(direction="momentum", momentum_dtype="bfloat16")
    assert largest_grad(low, F64) == f32
    assert [compute_dtype(dtype) for dtype in (F64, torch.float16)] == [F64, torch.float32]


# --- moving -------------------------------------------------------------------------------


def test_what_learns_moves_unless_its_learning_rate_is_zero() -> None:
    learn = torch.tensor([True, True, False])
    made = decide(method(), torch.float32, facts_of(numbers(1, 1, 1), numbers(0.1, 0, 0.1)), learn,
                  None)  # fmt: skip
    assert made.learn.tolist() == learn.tolist() and made.move.tolist() == [True, False, False]
    known = facts_of(numbers(1, 1, 1), 0.1, moves=True)
    assert decide(method(), torch.float32, known, learn, None).move is learn
    assert made.keys is None


@pytest.mark.parametrize("size", [0.0, INF, NAN])
def test_a_direction_without_a_size_moves_nothing(size: float) -> None:
    """Momenta of several steps may cancel; a gradient has been judged before."""
    learn, facts = torch.tensor([True, True]), facts_of(numbers(size, 1), 0.1, moves=True)
    made = decide(method(direction="momentum"), torch.float32, facts, learn, None)
    assert made.learn.tolist() == [True, True] and made.move.tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", [Fromage, Madam])
def test_coefficients_are_in_the_precision_of_the_rule(kind: Any, dtype: torch.dtype) -> None:
    facts = facts_of(numbers(1, 2), 0.1)
    own = method(kind)
    made = decide(own, dtype, facts, torch.tensor([True, True]), torch.tensor([0, 1]))
    exact = own.rule.coefficients(facts, own.options)
    assert made.coefficients.keys() == exact.keys()
    for name, value in made.coefficients.items():
        assert value.dtype is (exact[name].dtype if exact[name].dtype is torch.bool else dtype)
        assert torch.equal(value, exact[name].to(value.dtype))


def test_noise_hangs_on_the_seed_the_weight_and_its_step() -> None:
    number, steps = torch.tensor([3, 3, 4]), numbers(1, 2, 2)
    facts = facts_of(numbers(1, 1, 1), 0.1, step=steps)
    learn = torch.tensor([True] * 3)
    made = decide(method(seed=5), torch.float32, facts, learn, number)
    assert made.keys is not None and len(set(made.keys.tolist())) == 3
    assert torch.equal(made.keys, noise_keys(5, number, steps))


# --- norms and anchors --------------------------------------------------------------------


def test_norms_are_named_columns_and_an_ascent_follows_the_other_way() -> None:
    rows = numbers(1, 2, 0.25).view(1, 3)
    assert [x.item() for x in norms_of(rows, method())] == [1, 2, 0.25]
    assert norms_of(rows[:, :1], method()).param is None
    assert norms_of(rows[:, :2], method()).cosine is None
    assert norms_of(rows, method(maximize=True)).cosine.item() == -0.25
    # A direction is made of the negated gradient already.
    assert norms_of(rows, method(direction="momentum", maximize=True)).cosine.item() == 0.25


def test_an_anchor_is_made_once_and_of_a_usable_gradient() -> None:
    made = with_anchors(numbers(NAN, NAN, 3.0), numbers(2.0, 2.0, 2.0),
                        torch.tensor([True, False, True]))  # fmt: skip
    assert made[0] == 2 and made[1].isnan() and made[2] == 3


@given(st.floats(0, 1e300, width=64))
def test_an_anchor_is_a_float32_and_zero_for_a_zero_alone(norm: float) -> None:
    """A float64 weight beyond float32 neither started at zero nor is without a bound."""
    made = with_anchors(numbers(NAN), numbers(norm), torch.tensor([True])).item()
    assert made == float(torch.tensor(made, dtype=torch.float32)) < INF
    assert (made == 0) == (norm == 0)
    if TINY < norm < 3e38:
        assert made == pytest.approx(norm, rel=1e-7)


def test_a_part_with_less_than_its_share_is_a_placeholder() -> None:
    made = with_anchors(
        numbers(NAN, NAN, NAN, 0.1), numbers(0.4, 0.6, 0.0, 0.4), torch.tensor([True] * 4),
        share=numbers(1, 1, 1, 1), least=0.5,
    )  # fmt: skip
    assert made.tolist() == pytest.approx([-1, 0.6, -1, 0.1])


# --- on one tensor ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64], ids=str)
@pytest.mark.parametrize("make", [
    lambda params: Fromage(params, 0.125, p_bound=1.01), lambda params: Fromage(params, 0.125),
    lambda params: Madam(params, 0.125),
    lambda params: Fromage([{"params": params, "rule": "adamw", "lr": 0.125}]),
], ids=["bound", "fromage", "madam", "adamw"])  # fmt: skip
def test_deciding_on_one_tensor_counts_and_moves_like_a_step(make: Any, dtype: torch.dtype) -> None:
    """What a compiled program has of a step: numbers before and after, and coefficients."""
    param = nn.Parameter(gradient(torch.empty(4, 3, dtype=dtype), 1))
    optimizer = make([param])
    group = optimizer.param_groups[0]
    one = DecideOne(method_of(group, param), dtype)
    assert one == DecideOne(method_of(group, param), dtype) and hash(one) is not None
    for number in range(1, 6):
        grad = gradient(param, number)
        if number == 3:
            grad[0, 0] = NAN
        if number == 4:
            grad.zero_()
        anchored = "anchor_norm" in one.method.state
        fresh = {"step": numbers(0).float(), "skipped": numbers(0).float()}
        if anchored:
            fresh["anchor_norm"] = numbers(NAN).float()
        state = state_of(optimizer, param)
        before = {k: state[k].clone().view(1) for k in fresh} if state else fresh
        w, g = param.detach().double(), grad.double()
        cosine = (w * g).sum() / (w.norm() * g.norm()) if g.any() else torch.zeros(())
        rows = torch.stack([g.norm(), w.norm(), cosine]).view(1, 3)
        lr, numel = numbers(0.125), numbers(param.numel())
        after, decision = one(before, rows, numel, torch.tensor([0]), lr)
        old = param.detach().clone()
        param.grad = grad
        optimizer.step()
        state = state_of(optimizer, param)
        assert after.keys() == fresh.keys()
        for name, value in after.items():
            torch.testing.assert_close(value.float().view_as(state[name]), state[name])
        assert bool(decision.move) == (not same_bits(param, old))


# --- bundles that are decided together ----------------------------------------------------


@pytest.mark.parametrize("direction", ["momentum", "spectral", "adam"])
def test_bundles_that_are_decided_together_keep_their_own_bounds(direction: str) -> None:
    """Three values of p_bound, several momenta, rows and blocks: as each group alone."""
    ways: list[dict[str, Any]] = [
        {"p_bound": 1.01}, {"p_bound": 2.0}, {"p_bound": 1.01, "momentum": 0.5}, {},
        {"scale": "block", "split_sizes": (4, 2), "p_bound": 1.1},
    ]  # fmt: skip
    if direction != "spectral":
        ways.append({"scale": "row", "p_bound": 1.2, "lr_factor": 0.5})

    def made() -> list[nn.Parameter]:
        return [nn.Parameter(gradient(torch.empty(6, 4), n, 0.1)) for n in range(len(ways))]

    together, apart = made(), made()
    groups = [{"params": [p], **way} for p, way in zip(together, ways, strict=True)]
    optimizer = Fromage(groups, lr=0.25, direction=direction)
    others = [Fromage([p], lr=0.25, direction=direction, **way)
              for p, way in zip(apart, ways, strict=True)]  # fmt: skip
    for number in range(1, 5):
        run(optimizer, together, (number,))
        for place, (param, other) in enumerate(zip(apart, others, strict=True)):
            param.grad = together[place].grad.clone()
            other.step()
    for param, twin, other in zip(together, apart, others, strict=True):
        if direction == "spectral":  # matrices of one shape are multiplied as one stack
            torch.testing.assert_close(param, twin, rtol=1e-4, atol=1e-6)
        else:
            assert same_bits(param, twin)
        assert same_bits(
            state_of(optimizer, param)["anchor_norm"], state_of(other, twin)["anchor_norm"]
        )


def test_bounds_are_kept_apart_where_some_have_one_and_others_are_on_the_sphere() -> None:
    params = [nn.Parameter(gradient(torch.empty(6, 4), n, 0.1)) for n in range(3)]
    groups = [{"params": [p], **bound} for p, bound in zip(params, BOUNDS.values(), strict=True)]
    optimizer = Fromage(groups, lr=0.25, direction="momentum")
    first = [float(param.detach().norm()) for param in params]
    for _ in range(12):
        for place, param in enumerate(params):
            param.grad = -gradient(param, place)
        optimizer.step()
    grown = [float(p.detach().norm()) / size for p, size in zip(params, first, strict=True)]
    assert grown[0] > 1.2
    assert grown[1:] == pytest.approx([1.05, 1.0], rel=1e-5)
