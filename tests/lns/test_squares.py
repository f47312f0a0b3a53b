"""Squares in 8 bits: unbiased, exact where nothing changes, and never below the range."""

from __future__ import annotations

import math

import pytest
import torch

from hf_relopt.lns.squares import LEVELS, SPACING, decode_squares, encode_squares


def _noise(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(65536, shape, generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("size", [1e-27, 1e-8, 1.0, 1e30])
def test_every_code_is_its_own_nearest(size: float):
    top = torch.ceil(torch.tensor([[math.log(size) / SPACING]]))
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(1, 256)
    numbers = decode_squares(codes, top)
    assert numbers.isfinite().all() and (numbers.diff() > 0).all() and numbers[0, 0] == 0
    for bits in (0, 40000, 65535):
        again, new_top = encode_squares(numbers, torch.full((1, 256), bits, dtype=torch.int32))
        assert torch.equal(again, codes) and torch.equal(new_top, top)


def test_the_mean_of_many_is_the_number():
    numbers = torch.logspace(-6, 2, 40).view(1, 40)
    total = torch.zeros(1, 40, dtype=torch.float64)
    for seed in range(2000):
        codes, top = encode_squares(numbers, _noise((1, 40), seed))
        total += decode_squares(codes, top)
    error = (total / 2000 / numbers - 1).abs().max()
    assert float(error) < 4 * SPACING / math.sqrt(2000)


def test_a_slow_decay_is_followed():
    """beta = .999 moves a number by an 80th of a level: rounding to nearest would never move it."""
    numbers = torch.ones(1, 4000)
    codes, top = encode_squares(numbers, _noise((1, 4000)))
    for step in range(1000):
        codes, top = encode_squares(decode_squares(codes, top) * 0.999, _noise((1, 4000), step))
    mean = float(decode_squares(codes, top).double().mean())
    assert mean == pytest.approx(0.999**1000, rel=0.02)


def test_what_is_below_the_range_is_at_its_end_and_zero_is_zero():
    numbers = torch.tensor([[1.0, 1e-30, 0.0], [0.0, 0.0, 0.0]])
    codes, top = encode_squares(numbers, _noise((2, 3)))
    assert codes.tolist() == [[LEVELS, 1, 0], [0, 0, 0]]
    assert torch.equal(decode_squares(codes, top) == 0, numbers == 0)
    empty, _ = encode_squares(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.int32))
    assert empty.shape == (3, 0)


def test_the_ends_of_float32_have_codes():
    numbers = torch.tensor([[3.4e38, 1.0], [1.2e-38, 1.2e-38]])
    codes, top = encode_squares(numbers, _noise((2, 2)))
    found = decode_squares(codes, top)
    assert found.isfinite().all()
    # The smallest level is the first one above the smallest normal number.
    assert 1 <= float(found[1, 0] / numbers[1, 0]) < math.exp(2 * SPACING)
