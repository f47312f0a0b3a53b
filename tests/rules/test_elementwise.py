"""The compiled exp and log against float64, and signs down to the sign of zero."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.rules.elementwise import exp, log, times_sign


def _relative_error(found: torch.Tensor, x: torch.Tensor) -> float:
    exact = torch.exp(x.double())
    return float(((found.double() - exact) / exact).abs().max())


# One program for one length.
LENGTH = 20_001
compiled_exp = torch.compile(exp, fullgraph=True)
compiled_log = torch.compile(log, fullgraph=True)


@pytest.mark.parametrize(("reach", "error"), [(0.3, 1.2e-7), (10.0, 7e-7), (80.0, 5e-6)])
def test_compiled_exp_is_exact_to_float32_rounding(reach: float, error: float) -> None:
    x = torch.linspace(-reach, reach, LENGTH)
    compiled = compiled_exp(x)
    assert not torch.equal(compiled, torch.exp(x)), "the polynomial did not run"
    assert _relative_error(compiled, x) < error
    assert _relative_error(exp(x), x) < 1.2e-7


def test_compiled_exp_has_no_bias_that_adds_up() -> None:
    x = torch.linspace(-0.1, 0.1, LENGTH)
    compiled = compiled_exp(x).double()
    assert abs(float((compiled / torch.exp(x.double()) - 1).mean())) < 5e-9


def test_exp_of_zero_is_one() -> None:
    assert set(compiled_exp(torch.zeros(LENGTH)).tolist()) == {1.0}


def test_compiled_log_is_near_and_zero_is_far_below() -> None:
    for x in (torch.logspace(-37.9, 38.4, LENGTH), torch.linspace(0.5, 2, LENGTH)):
        exact = torch.log(x.double())
        compiled = compiled_log(x)
        assert not torch.equal(compiled, torch.log(x)), "the polynomial did not run"
        assert float((compiled.double() - exact).abs().max()) < 1e-5
        assert float((log(x).double() - exact).abs().max()) < 1e-5
    assert float(compiled_log(torch.zeros(LENGTH)).max()) < -87


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_sign_sees_the_sign_of_zero_and_nan_stays(dtype: torch.dtype) -> None:
    x = torch.tensor([1.5, -2.0, 0.0, float("nan"), float("inf")], dtype=dtype)
    for function in (times_sign, torch.compile(times_sign, fullgraph=True)):
        for sign in (1.0, -1.0):
            found = function(x, torch.full_like(x, sign * 0.0))
            torch.testing.assert_close(found, sign * x, equal_nan=True, rtol=0, atol=0)
            assert torch.equal(torch.signbit(found[:3]), torch.signbit(sign * x[:3]))
