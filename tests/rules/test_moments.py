"""Moments in float64: means that forget, a look ahead, and quotients without an epsilon."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt.rules import moments
from hf_relopt.rules.madam import SMALLEST_SQUARE
from tests.tensors import gradient, same_bits, to_numpy

decays = st.floats(0, 0.999)


@given(decays, decays, st.integers(0, 100))
def test_moments_are_weighted_means_of_the_gradients(decay: float, beta: float, seed: int) -> None:
    """After t steps the weights of the gradients add up to 1 - decay^t."""
    grads = [gradient(torch.empty(5).double(), seed + n) for n in range(4)]
    momentum, second = torch.zeros(5).double(), torch.zeros(5).double()
    alone = torch.zeros(5).double()
    for grad in grads:
        momentum, second = moments.take_in_square(momentum, grad, second, decay=decay, beta=beta)
        (alone,) = moments.take_in(alone, grad, decay=decay)
    weights = [(1 - decay) * decay ** (3 - n) for n in range(4)]
    squares = [(1 - beta) * beta ** (3 - n) for n in range(4)]
    assert sum(weights) == pytest.approx(1 - decay**4)
    expected = sum(w * to_numpy(g) for w, g in zip(weights, grads, strict=True))
    np.testing.assert_allclose(to_numpy(momentum), expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(to_numpy(alone), expected, rtol=1e-12, atol=1e-15)
    expected = sum(w * to_numpy(g) ** 2 for w, g in zip(squares, grads, strict=True))
    np.testing.assert_allclose(to_numpy(second), expected, rtol=1e-12)


@given(decays)
def test_nesterov_looks_one_gradient_ahead(decay: float) -> None:
    """The momentum as it would be if this gradient came once more."""
    momentum, grad = (gradient(torch.empty(5).double(), n) for n in (1, 2))
    before = momentum.clone(), grad.clone()
    new, ahead = moments.look_ahead(momentum, grad, torch.empty(5), decay=decay)
    again, followed = moments.follow(momentum, grad, torch.empty(5), decay=decay)
    (expected,) = moments.take_in(momentum, grad, decay=decay)
    assert same_bits(new, expected) and same_bits(again, expected) and followed is again
    torch.testing.assert_close(ahead, decay * new + (1 - decay) * grad, rtol=1e-12, atol=1e-15)
    assert same_bits(momentum, before[0]) and same_bits(grad, before[1])


def test_the_first_direction_is_the_sign_of_the_gradient() -> None:
    """Both corrections undo what the moments start with; there is no epsilon to shrink it."""
    grad = torch.tensor([1e-18, -1e-3, 2.0, -1e15])
    momentum, second = moments.take_in_square(torch.zeros(4), grad, torch.zeros(4), decay=0.9,
                                              beta=0.99)  # fmt: skip
    found = moments.adam(momentum, second, correction1=torch.tensor(0.1),
                         correction2=torch.tensor(0.01))  # fmt: skip
    torch.testing.assert_close(found, grad.sign(), rtol=1e-5, atol=0)


def test_without_a_second_moment_there_is_no_direction() -> None:
    """Where v is no normal float32 number, also where m is not zero: no inf, no NaN."""
    second = torch.tensor([0.0, SMALLEST_SQUARE / 2, SMALLEST_SQUARE, 1.0])
    one = torch.ones(())
    found = moments.adam(torch.ones(4), second, correction1=one, correction2=one)
    assert found[:2].tolist() == [0.0, 0.0] and bool(torch.isfinite(found).all())
    torch.testing.assert_close(found[2:], second[2:].rsqrt())
    # The threshold is for v freed of its bias, as the quotient is.
    found = moments.adam(torch.ones(4), second, correction1=one, correction2=0.25 * one)
    assert (found != 0).tolist() == [False, True, True, True]
