"""Moments: what a direction keeps takes gradients in, and is rounded without bias."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from hf_relopt.rules.rule import MOMENTS
from tests.tensors import ULP, gradient, run, same_bits, state_of


@pytest.mark.parametrize("direction", ["momentum", "spectral", "adam"])
def test_a_bfloat16_momentum_is_rounded_without_bias(direction: str) -> None:
    """Each entry is one of its two neighbours, and their mean is the momentum."""
    param = nn.Parameter(gradient(torch.empty(128, 64), 1, 0.1))
    optimizer = Fromage([param], direction=direction, momentum_dtype="bfloat16")
    param.grad = torch.full_like(param, 1.0)
    param.grad[:, ::2] = -1.0
    optimizer.step()
    kept = state_of(optimizer, param)["momentum"]
    exact = (1.0 - 0.9) * param.grad.double()
    assert kept.dtype == torch.bfloat16 and kept.shape == param.shape
    spacing = ULP[torch.bfloat16] * exact.abs()
    assert ((kept.double() - exact).abs() < spacing).all()
    size = kept.double().abs()
    assert len(size.unique()) == 2, "rounded to nearest"
    # The spread of one draw is at most half a spacing; 8,192 of them.
    assert abs(float((size - exact.abs()).mean())) < 5 * 0.5 * float(spacing.max()) / 8192**0.5


def test_a_bfloat16_momentum_keeps_learning_small_gradients() -> None:
    """Rounded to nearest, m would stop a few units in the last place short of the gradient."""
    param = nn.Parameter(gradient(torch.empty(16, 16), 1, 0.1))
    options = {"momentum": 0.999, "momentum_dtype": "bfloat16"}
    optimizer = Fromage([param], lr=0.0, direction="momentum", **options)
    for _ in range(300):
        param.grad = torch.ones_like(param)
        optimizer.step()
    mean = float(state_of(optimizer, param)["momentum"].double().mean())
    assert mean == pytest.approx(1 - 0.999**300, rel=0.02)


@pytest.mark.parametrize("direction", [*MOMENTS, "rms"])
def test_a_gradient_beyond_the_memory_is_skipped_and_forgotten(direction: str) -> None:
    """Weights in float64, and a momentum in float32 that would stay infinite."""
    param = nn.Parameter(gradient(torch.empty(6, 4, dtype=torch.float64), 1))
    optimizer = Fromage([param], lr=0.02, direction=direction)
    before = param.detach().clone()
    param.grad = torch.full_like(param, 1e40)
    optimizer.step()
    assert same_bits(param, before) and float(state_of(optimizer, param)["skipped"]) == 1
    run(optimizer, [param], (2,))
    assert not same_bits(param, before) and bool(param.isfinite().all())
