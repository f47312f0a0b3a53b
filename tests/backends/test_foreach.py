"""Small parts laid end to end step as the loop does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hf_relopt.backends import foreach, loop
from tests.batches import SHAPES, batch_of, view_of
from tests.tensors import same_bits

# A scalar, a tensor without entries and one that is larger than any limit below.
MIXED = [*SHAPES[:-1], (), (0, 3), (40, 40), SHAPES[-1]]


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    """Arrangements that were made with other limits."""
    foreach._arrange.cache_clear()
    yield
    foreach._arrange.cache_clear()


@pytest.mark.parametrize("limit", [1, 70, 10**6])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_row", [(), (0, 3, 8)], ids=["tensors", "rows"])
def test_small_parts_step_as_the_loop_does(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    noisy: bool,
    limit: int,
    by_row: tuple[int, ...],
) -> None:
    monkeypatch.setattr(foreach, "small_size", lambda device: 100)
    monkeypatch.setattr(foreach, "piece_size", lambda device: limit)
    one, other = (batch_of(dtype, MIXED, noisy, by_row) for _ in "ab")
    before = [weight.clone() for weight in one.weights()]
    loop.update(*one.given())
    foreach.update(*other.given())
    for start, weight, twin in zip(before, one.weights(), other.weights(), strict=True):
        assert same_bits(weight, twin)
        assert same_bits(start, weight) == (start is before[2] or start.numel() == 0)


def test_a_part_with_cut_columns_is_not_laid_end_to_end() -> None:
    """Its entries do not follow each other in the full tensor, by which the noise is drawn."""
    one, other = (batch_of(torch.bfloat16, SHAPES, noisy=True) for _ in "ab")
    for batch in (one, other):
        batch.parts[1] = batch.parts[1]._replace(view=view_of(1, (4, 3), origin=3, columns=9))
    runs = [part.view.in_one_run for part in one.parts]
    assert (runs[0], runs[1], runs[-1]) == (True, False, True)
    loop.update(*one.given())
    foreach.update(*other.given())
    assert all(map(same_bits, one.weights(), other.weights()))


def test_what_is_laid_end_to_end_comes_apart_again() -> None:
    tensors = [torch.arange(6.0).view(2, 3).t(), torch.tensor(7.0), torch.zeros(0, 2)]
    flat = foreach.end_to_end(tensors)
    assert flat.shape == (7,)
    assert all(map(torch.equal, foreach.apart(flat, tensors), tensors))
