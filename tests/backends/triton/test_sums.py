"""Sums of tiles and their totals, beside those of tests/backends/test_sums.py."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends import sums as portable
from hf_relopt.backends.part import Part
from hf_relopt.backends.triton import sums, tiles
from tests.batches import view_of
from tests.cases import HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")

SHAPES = [(6, 5), (40, 30), (), (0,), (3, 70), (9, 5), (5,)]


def _parts(dtype: torch.dtype, by_row: tuple[int, ...]) -> list[Part]:
    noise = torch.Generator().manual_seed(1)
    parts, first = [], 0
    for place, shape in enumerate(SHAPES):
        count = shape[0] if place in by_row else 1
        weight, grad = (torch.randn(shape, generator=noise).to(dtype) for _ in "wg")
        parts.append(Part(view_of(first, shape, count), weight, grad))
        first += count
    # Columns cut from a larger tensor, as the blocks of a fused projection are.
    cut = torch.randn(6, 15, generator=noise).to(dtype)[:, 5:10]
    parts[0] = parts[0]._replace(weight=cut)
    return parts


@pytest.mark.parametrize("at_once", [4, 512])
@pytest.mark.parametrize("tile", [16, tiles.TILE])
@pytest.mark.parametrize("by_row", [(), (0, 1, 4, 5)], ids=["tensors", "rows"])
@pytest.mark.parametrize("what", ["grad", "norms", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_slice_has_its_own_sums(
    dtype: torch.dtype, what: str, by_row: tuple[int, ...], tile: int, at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sums._total_kernel.cache_clear()
    monkeypatch.setattr(tiles, "TILE", tile)
    monkeypatch.setattr(sums, "_AT_ONCE", at_once)
    parts = _parts(dtype, by_row)
    found, expected = sums.sums(parts, what), portable.sums(parts, what)
    sums._total_kernel.cache_clear()
    rtol = 1e-12 if dtype is torch.float64 else 1e-6
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-7)
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=rtol, atol=0)


def test_a_sum_of_a_million_keeps_its_digits() -> None:
    """A float32 accumulator is off by 1e-4 here."""
    ones = torch.full((2**20 + 3,), 0.1)
    exact = (ones.numel() * float(ones[0].double()) ** 2) ** 0.5
    part = Part(view_of(0, tuple(ones.shape)), ones, ones)
    assert float(sums.sums([part], "grad")) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    grad = torch.ones(100)
    grad[7] = value
    part = Part(view_of(0, (100,)), torch.ones(100), grad)
    norm, _, cosine = sums.sums([part], "cosine")[0].tolist()
    assert not norm < float("inf") and (value == value or cosine == 0)


def test_too_many_strides_are_summed_the_portable_way() -> None:
    every_other = torch.rand(4, 6, 8, 10)[::2, ::2, ::2, ::2]
    part = Part(view_of(0, (2, 3, 4, 5)), every_other, torch.rand(2, 3, 4, 5))
    assert torch.equal(sums.sums([part], "cosine"), portable.sums([part], "cosine"))
