"""Scales: room for the largest weight and for what it grows to."""

from __future__ import annotations

import pytest
import torch

from hf_relopt import ConfigError
from hf_relopt.lns.format import SMALLEST_SCALE, LNSFormat
from hf_relopt.lns.scale import HEADROOM, scale_of

BY_ROW = LNSFormat("rows", 8, 0.06)
BY_TENSOR = LNSFormat("tensor", 8, 0.06, scale="tensor")


def test_it_is_madam_s_bound_or_the_largest_entry() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, -1.0], [10.0, 0.0, 0.0, 0.0]])
    assert scale_of(weight, BY_ROW).tolist() == [[HEADROOM], [15.0]]
    assert scale_of(weight, BY_ROW, headroom=0.0).tolist() == [[1.0], [10.0]]
    assert float(scale_of(weight, BY_TENSOR, headroom=2.0)) == 10.0


@pytest.mark.parametrize("shape", [(), (3,), (4, 5), (2, 3, 4), (0, 3), (3, 0), (2, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_it_meets_the_weight(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.ones(shape, dtype=dtype)
    for form in (BY_ROW, BY_TENSOR):
        found = scale_of(weight, form)
        assert found.dtype is torch.float32 and (found * weight).shape == weight.shape
        by_row = form is BY_ROW and len(shape) > 1
        assert found.numel() == (shape[0] if by_row else 1)


@pytest.mark.parametrize("factor", [2.0**-50, 2.0**-10, 2.0**100, 2.0**126])
def test_squares_beyond_float32_change_nothing(factor: float) -> None:
    weight = torch.tensor([[1.0, 0.5], [1.5, 1.5]])
    torch.testing.assert_close(
        scale_of(weight * factor, BY_ROW),
        (scale_of(weight, BY_ROW).double() * factor).clamp(max=torch.finfo().max).float(),
    )


def test_of_zeros_and_of_what_is_next_to_nothing_it_is_the_smallest() -> None:
    assert scale_of(torch.zeros(2, 3), BY_ROW).tolist() == [[SMALLEST_SCALE]] * 2
    assert float(scale_of(torch.full((3,), 1e-40), BY_ROW)) == SMALLEST_SCALE


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_what_is_not_finite_in_float32_is_refused(bad: float) -> None:
    weight = torch.ones(2, 3, dtype=torch.float64)
    weight[1, 2] = bad
    with pytest.raises(ConfigError, match=r"\(2, 3\) has entries that are NaN or infinite"):
        scale_of(weight, BY_ROW)


def test_of_a_parameter_it_has_no_history() -> None:
    assert not scale_of(torch.nn.Parameter(torch.ones(2, 2)), BY_ROW).requires_grad


@pytest.mark.parametrize("headroom", [-1.0, float("inf"), float("nan")])
def test_no_headroom_is_refused(headroom: float) -> None:
    with pytest.raises(ConfigError, match="headroom is"):
        scale_of(torch.ones(2), BY_ROW, headroom)
