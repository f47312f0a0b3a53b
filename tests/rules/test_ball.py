"""The ball: nearest points against float64 arithmetic, and what they always are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_relopt.rules.ball import kept_share, nearest


def pulled(param: torch.Tensor, initial: torch.Tensor, rho: float) -> torch.Tensor:
    norms = [torch.linalg.vector_norm(x.double()) for x in (param.double() - initial, initial)]
    return nearest(param, initial, kept_share(*norms, rho))


def drawn(seed: int, far: float, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    initial = torch.randn(7, 5, generator=generator)
    param = initial + far * torch.randn(7, 5, generator=generator)
    return param.to(dtype), initial.to(dtype)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 10), st.floats(1e-3, 2))
def test_the_nearest_point_is_that_of_float64(seed, far, rho):
    param, initial = drawn(seed, far)
    w, w0 = param.double().numpy(), initial.double().numpy()
    length, radius = np.linalg.norm(w - w0), rho * np.linalg.norm(w0)
    expected = w if length <= radius else w0 + (w - w0) * radius / length
    found = pulled(param, initial, rho)
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-6, atol=1e-6)
    # In the ball, up to the rounding of its entries.
    assert np.linalg.norm(found.double().numpy() - w0) <= radius + 1e-6 * np.linalg.norm(expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 3), st.floats(1e-2, 1))
def test_no_other_point_of_the_ball_is_nearer(seed, far, rho):
    param, initial = (each.double() for each in drawn(seed, far))
    found = pulled(param, initial, rho)
    generator = torch.Generator().manual_seed(seed + 1)
    way = torch.randn(initial.shape, generator=generator, dtype=torch.float64)
    other = initial + way * rho * initial.norm() / way.norm() * torch.rand((), generator=generator)
    assert (param - found).norm() <= (param - other).norm() + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_inside_keeps_every_bit(dtype):
    param, initial = drawn(3, 0.01, dtype)
    param[0, 0] = -0.0
    found = pulled(param, initial, 0.5)
    assert found.dtype == dtype
    assert torch.equal(found, param) and torch.signbit(found[0, 0])


def test_zero_weights_and_norms_that_are_not_finite_are_left_alone():
    update = torch.tensor([1.0, torch.inf, torch.nan, 1.0, 0.0])
    initial = torch.tensor([0.0, 1.0, 1.0, torch.nan, 1.0])
    assert kept_share(update, initial, 0.1).tolist() == [1.0] * 5
    assert kept_share(torch.tensor([2.0]), torch.tensor([4.0]), 0.25).tolist() == [0.5]
