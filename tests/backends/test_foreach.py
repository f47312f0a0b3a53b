"""Small tensors laid end to end step as the loop does."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends import foreach, loop
from hf_relopt.sharding.layout import Place
from tests.batches import SHAPES, batch_of
from tests.tensors import same_bits

# A scalar, a tensor without entries and one that is larger than any limit below.
MIXED = [*SHAPES[:-1], (), (0, 3), (40, 40), SHAPES[-1]]


@pytest.mark.parametrize("limit", [1, 70, 10**6])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_tensors_step_as_the_loop_does(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, noisy: bool, limit: int
) -> None:
    monkeypatch.setattr(foreach, "small_size", lambda device: 100)
    monkeypatch.setattr(foreach, "piece_size", lambda device: limit)
    one, other = (batch_of(dtype, MIXED, noisy) for _ in "ab")
    before = [param.clone() for param in one.params]
    loop.apply(one)
    foreach.apply(other)
    for start, param, twin in zip(before, one.params, other.params, strict=True):
        assert same_bits(param, twin)
        assert same_bits(start, param) == (start is before[2] or start.numel() == 0)


def test_a_part_with_cut_columns_is_not_laid_end_to_end() -> None:
    """Its entries do not follow each other in the whole tensor, by which the noise is drawn."""
    one, other = (batch_of(torch.bfloat16, SHAPES, noisy=True) for _ in "ab")
    for batch in (one, other):
        batch.places[1] = Place(torch.Size((4, 9)), (0, 3))
    assert [foreach.in_one_run(one, index) for index in (0, 1, len(SHAPES) - 1)] == [
        True,
        False,
        True,
    ]
    loop.apply(one)
    foreach.apply(other)
    assert all(map(same_bits, one.params, other.params))


def test_what_is_laid_end_to_end_comes_apart_again() -> None:
    tensors = [torch.arange(6.0).view(2, 3).t(), torch.tensor(7.0), torch.zeros(0, 2)]
    flat = foreach.end_to_end(tensors)
    assert flat.shape == (7,)
    assert all(map(torch.equal, foreach.apart(flat, tensors), tensors))
