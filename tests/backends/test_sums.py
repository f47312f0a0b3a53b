"""Norms and cosines against float64 arithmetic, at sizes whose squares are no float32 numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_relopt.backends import sums


def _expected(param: torch.Tensor, grad: torch.Tensor) -> list[float]:
    w, g = param.double().numpy().ravel(), grad.double().numpy().ravel()
    norms = float(np.linalg.norm(g)), float(np.linalg.norm(w))
    product = norms[0] * norms[1]
    return [*norms, float(w @ g) / product if product else 0.0]


def _pair(scale: float, shape: tuple[int, ...] = (40, 30)) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(3)
    param = torch.randn(shape, generator=noise)
    return param * scale, (torch.randn(shape, generator=noise) + param) / scale


@pytest.mark.parametrize("sums_of", [sums.local_sums, sums._scaled_sums], ids=["float64", "scaled"])
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e20])
def test_norms_and_cosine_at_every_scale(sums_of, scale: float) -> None:  # type: ignore[no-untyped-def]
    pairs = [_pair(scale), _pair(1 / scale, (7,))]
    params, grads = ([pair[i] for pair in pairs] for i in (0, 1))
    found = sums_of(params, grads, "cosine")
    for row, pair in zip(found.tolist(), pairs, strict=True):
        assert row == pytest.approx(_expected(*pair), rel=2e-6)


@pytest.mark.parametrize("what", ["grad", "norms", "cosine"])
def test_only_what_is_asked_is_summed(what: str) -> None:
    param, grad = _pair(1.0)
    columns = {"grad": 1, "norms": 2, "cosine": 3}[what]
    for sums_of in (sums.local_sums, sums._scaled_sums):
        row = sums_of([param], [grad], what)[0]
        assert row.tolist() == pytest.approx(_expected(param, grad)[:columns], rel=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 4)])
def test_zero_and_empty_tensors_have_norm_and_cosine_zero(shape: tuple[int, ...]) -> None:
    zero = torch.zeros(shape)
    for sums_of in (sums.local_sums, sums._scaled_sums):
        assert sums_of([zero], [zero], "cosine").tolist() == [[0.0, 0.0, 0.0]]


def test_layouts_pair_entries_by_index() -> None:
    param, grad = _pair(1.0, (600, 700))
    strided = param.t().contiguous().t()
    assert not strided.is_contiguous()
    found = sums.local_sums([strided], [grad], "cosine")[0]
    assert found.tolist() == pytest.approx(_expected(param, grad), rel=1e-12)


def test_a_sum_of_millions_keeps_its_digits() -> None:
    # A float32 accumulator is off by 5e-3 here.
    ones = torch.full((2**22 + 3,), 0.1)
    exact = (ones.numel() * float(ones[0].double()) ** 2) ** 0.5
    assert float(sums.local_sums([ones], [ones], "grad")) == pytest.approx(exact, rel=1e-12)
