"""Integer Madam's equation: whole steps of levels, whose mean is the real step."""

from __future__ import annotations

import numpy as np
import torch

from hf_relopt.rules import integer_madam
from tests.oracles.integer_madam import rises

SPACING, LEVELS = 0.05, 127


def _step(
    level: torch.Tensor, grad: torch.Tensor, bits: torch.Tensor, negative: torch.Tensor, lr: float
) -> tuple[torch.Tensor, torch.Tensor]:
    found = integer_madam.update(
        level,
        grad,
        torch.zeros_like(grad),
        is_negative=negative,
        bits=bits,
        lr=torch.tensor(lr),
        inverse_correction=torch.tensor(1 / (1 - 0.999)),
        spacing=SPACING,
        levels=LEVELS,
        beta=0.999,
        g_bound=10.0,
    )
    return found


def test_the_mean_of_many_roundings_is_the_step():
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(16, generator=generator)
    negative = torch.rand(16, generator=generator) < 0.5
    level = torch.full((16,), 60, dtype=torch.int16)
    expected = rises(negative.numpy(), [grad.numpy()], 0.013, SPACING)[0]
    total = torch.zeros(16, dtype=torch.float64)
    # All 2^16 noises once: the mean is exact but for their own resolution.
    for bits in torch.arange(0, 65536, 64, dtype=torch.int32):
        new, _ = _step(level, grad, bits.expand(16), negative, 0.013)
        rise = (new - level).double()
        assert bool(((rise - torch.from_numpy(expected)).abs() < 1).all())
        total += rise
    assert np.allclose((total / 1024).numpy(), expected, atol=2e-3)


def test_levels_stay_in_the_range_and_zero_stays_zero():
    level = torch.tensor([0, 1, LEVELS, 2], dtype=torch.int16)
    grad = torch.tensor([1.0, 1.0, -1.0, -1.0])
    bits = torch.zeros(4, dtype=torch.int32)
    new, second_moment = _step(level, grad, bits, torch.zeros(4, dtype=torch.bool), 0.5)
    assert new.tolist() == [0, 1, LEVELS, 12]
    assert new.dtype is torch.int16
    assert torch.equal(second_moment, (1 - 0.999) * grad.square())


def test_no_gradient_is_no_step():
    level = torch.arange(1, 5, dtype=torch.int16)
    for bits in (0, 65535):
        noise = torch.full((4,), bits, dtype=torch.int32)
        new, _ = _step(level, torch.zeros(4), noise, torch.tensor([True, False] * 2), 0.9)
        assert torch.equal(new, level)
