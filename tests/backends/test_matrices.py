"""Matrices that are alike go together; those of which other ranks have a part go at once."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends import matrices
from hf_relopt.backends.matrices import Matrices, in_stacks, units
from tests.tensors import gradient


def one(shape: tuple[int, int], lies: object = None, dtype: torch.dtype = torch.float32):
    grad = gradient(torch.empty(1, *shape, dtype=dtype), 1)
    return Matrices(grad, grad.double().square().mean().sqrt(), grad.numel(), *shape, lies)


def rounds(some: list[Matrices]) -> list[list[list[int]]]:
    """The places that are worked on at once; each matrix gets itself back."""
    seen = []

    def work(places: list[list[int]]) -> list[torch.Tensor]:
        seen.append(places)
        return [torch.cat([some[place].grads for place in own]) for own in places]

    for each, result in zip(some, in_stacks(some, work), strict=True):
        assert torch.equal(each.grads, result)
    return seen


def test_what_lies_on_several_ranks_goes_on_together() -> None:
    some = [one((3, 2)), one((3, 2), "rows"), one((2, 3)), one((3, 2)), one((2, 2), "columns")]
    assert rounds(some) == [[[0, 3]], [[2]], [[1], [4]]]
    assert rounds([]) == []


def test_a_stack_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "piece_size", lambda device: 12)
    assert rounds([one((3, 2))] * 5) == [[[0, 1]], [[2, 3]], [[4]]]


@pytest.mark.parametrize("size", [2.0**-100, 1.0, 2.0**100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_units_have_room_for_their_squares(dtype: torch.dtype, size: float) -> None:
    grad = gradient(torch.empty(1, 4, 3, dtype=dtype), 1) * size
    rms = grad.double().square().mean().sqrt()
    found = units([Matrices(grad, rms, 12, 4, 3)] * 2)
    assert found.shape == (2, 4, 3)
    assert found.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert torch.allclose(found.double().square().mean(), torch.ones(()).double(), rtol=1e-5)
    assert not units([Matrices(torch.zeros(1, 4, 3), torch.zeros(()), 12, 4, 3)]).any()
