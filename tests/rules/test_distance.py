"""Deep relative trust: the paper's equations against their plain forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt.rules.distance import (
    SUMS,
    deep_relative_trust,
    largest_lr,
    log_deep_relative_trust,
    pair_sums,
)


@given(st.lists(st.floats(0, 10), max_size=40))
def test_deep_relative_trust_is_the_product_minus_one(updates):
    drt = deep_relative_trust(log_deep_relative_trust(updates))
    assert drt == pytest.approx(math.prod(1 + r for r in updates) - 1, rel=1e-9, abs=1e-12)


def test_it_is_exact_for_small_updates_and_never_overflows():
    assert deep_relative_trust(log_deep_relative_trust([1e-12] * 3)) == pytest.approx(3e-12)
    log = log_deep_relative_trust([9.0] * 2000)
    assert log == pytest.approx(2000 * math.log(10)) and deep_relative_trust(log) == math.inf


@pytest.mark.parametrize(("depth", "cosine"), [(1, 1.0), (2, 1.0), (69, 1.0), (16, 0.3)])
def test_largest_lr_is_the_lemma(depth, cosine):
    assert largest_lr(depth, cosine) == pytest.approx((1 + cosine) ** (1 / depth) - 1, rel=1e-12)


def test_a_step_of_one_percent_holds_up_to_69_layers():
    assert largest_lr(69) > 0.01 > largest_lr(70)


@pytest.mark.parametrize(
    "dtypes",
    [("float32",) * 2, ("bfloat16", "float32"), ("float64", "float16"), ("float8_e4m3fn",) * 2],
)
def test_pair_sums_match_float64(dtypes):
    first, second = (torch.randn(7, 5).to(getattr(torch, name)) for name in dtypes)
    second[0] = first[0].to(second.dtype)  # a row that does not change
    second[1] = -first[1].float()
    a, b = (tensor.double().numpy() for tensor in (first, second))
    expected = [
        (a**2).sum(), (b**2).sum(), ((b - a) ** 2).sum(), (a * b < 0).sum(), (a != b).sum(), a.size,
    ]  # fmt: skip
    found = pair_sums(first, second)
    assert found.dtype == torch.float64 and len(SUMS) == len(found)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e20, 1e38])
def test_pair_sums_have_room_for_tiny_and_huge_entries(size):
    first = torch.tensor([size, -size])
    before, after, update, signs, changed, _ = pair_sums(first, -first).tolist()
    assert before == after == pytest.approx(2 * size**2, rel=1e-6)
    # -2e38 is beyond float32's square, and within float32 itself.
    assert update == pytest.approx(8 * size**2, rel=1e-6) and (signs, changed) == (2, 2)


def test_a_zero_has_no_sign():
    first, second = torch.tensor([0.0, -0.0, 1.0, 0.0]), torch.tensor([1.0, 2.0, 0.0, -0.0])
    *_, signs, changed, _ = pair_sums(first, second).tolist()
    assert (signs, changed) == (0, 3)
