"""Bounds of travel: attained by the worst direction, never below a real walk."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_relopt.rules.travel import START, after_step, with_placeholders

LRS = st.lists(st.floats(0, 0.5), min_size=1, max_size=12)


def walk(lrs, p_bound, sphere, towards):
    """|W - W0|/|W0| and the bound after each step along ``towards(W)``, in float64."""
    start = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    weight, size, reach = start.clone(), start.norm(), START
    for lr in lrs:
        if lr > 0:
            way = towards(weight)
            weight = (weight - lr * weight.norm() * way / way.norm()) / math.sqrt(1 + lr * lr)
            if sphere:
                weight = weight * size / weight.norm()
            elif p_bound is not None and weight.norm() > p_bound * size:
                weight = weight * p_bound * size / weight.norm()
        reach = after_step(reach, lr, p_bound=p_bound, sphere=sphere, eps=0.0)
        yield float((weight - start).norm() / size), reach


@settings(max_examples=80, deadline=None)
@given(LRS, st.sampled_from([None, 0.5, 1.0, 1.2, 4.0]), st.booleans(), st.integers(0, 1000))
def test_no_walk_gets_beyond_the_bound(lrs, p_bound, sphere, seed):
    generator = torch.Generator().manual_seed(seed)

    def towards(weight):
        noise = torch.randn(3, generator=generator, dtype=torch.float64)
        # Mostly outwards, where a walk gets furthest.
        return noise if seed % 3 == 0 else 0.2 * noise - weight

    for moved, reach in walk(lrs, None if sphere else p_bound, sphere, towards):
        assert moved <= reach.distance * (1 + 1e-12) + 1e-12


def test_a_walk_along_the_weight_attains_it():
    """Inwards the first step is the bound; outwards norms grow as fast as it says."""
    [(moved, reach)] = walk([0.1], None, False, lambda weight: weight)
    assert moved == pytest.approx(reach.distance, rel=1e-12) and moved > 0.1
    lrs = [0.1] * 5
    start = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    weight, reach = start.clone(), START
    for lr in lrs:
        weight = (weight + lr * weight) / math.sqrt(1 + lr * lr)
        reach = after_step(reach, lr, p_bound=None, sphere=False, eps=0.0)
    assert float(weight.norm() / start.norm()) == pytest.approx(reach.norm, rel=1e-12)


def test_a_step_at_right_angles_on_a_sphere_attains_its_bound():
    lr = 0.3

    # V touches the ball of radius lr around W: at right angles to V itself.
    def touching(weight):
        side = torch.tensor([-4.0, 3.0, 0.0], dtype=torch.float64)
        return lr * weight / weight.norm() + math.sqrt(1 - lr * lr) * side / side.norm()

    [(moved, reach)] = walk([lr], None, True, touching)
    assert moved == pytest.approx(reach.distance, rel=1e-12)


def test_small_rates_add_up_to_about_their_sum_and_bounds_cap_it():
    reach = START
    for _ in range(1000):
        reach = after_step(reach, 1e-4, p_bound=1.0, sphere=False, eps=0.0)
    assert reach.distance == pytest.approx(0.1, rel=1e-3)
    for _ in range(100_000):
        reach = after_step(reach, 1e-2, p_bound=1.0, sphere=False, eps=0.0)
    # The triangle of W0 and W, neither longer than |W0|.
    assert reach.distance == 2.0
    assert after_step(reach, 0.0, p_bound=None, sphere=False, eps=1.0) == reach


def test_a_bound_below_the_first_norm_counts_as_a_move():
    reach = after_step(START, 1e-3, p_bound=0.5, sphere=False, eps=0.0)
    assert reach.distance >= 0.5 and reach.norm == 0.5


def test_placeholders_add_in_squares():
    assert with_placeholders(0.3, 0.0, 0.0) == pytest.approx(0.3)
    assert with_placeholders(0.3, 2.0, 0.04) == pytest.approx(0.5)
