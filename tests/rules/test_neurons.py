"""Neuron-wise normalisation: where it ends, and which side of a matrix it is for."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.rules import factored, neurons
from hf_relopt.rules.orthogonalize import orthogonalize
from tests.tensors import gradient


def evened(shape: tuple[int, int], over: str, steps: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """An orthogonalized matrix with and without."""
    matrix = gradient(torch.empty(shape), 1) * torch.logspace(-1, 1, shape[0])[:, None]
    unit = orthogonalize(matrix).double()
    sizes = torch.zeros(1, shape[0] if over == "columns" else shape[1], dtype=torch.float64)
    count = shape[1] if over == "columns" else shape[0]
    for _ in range(steps):
        sums = neurons.sums(unit.unsqueeze(0), over)
        sizes = factored.running_rms(sizes, sums / count, beta=0.9)
    return unit.clone(), neurons.even_(unit.unsqueeze(0), sizes, over)[0]


def spread(matrix: torch.Tensor, dim: int) -> float:
    sizes = matrix.square().mean(dim=dim).sqrt()
    return float(sizes.max() / sizes.min())


@pytest.mark.parametrize(("shape", "over", "dim"), [((12, 4), "columns", 1), ((4, 12), "rows", 0)])
def test_neurons_along_the_longer_side_end_equal(
    shape: tuple[int, int], over: str, dim: int
) -> None:
    before, after = evened(shape, over)
    assert spread(before, dim) > 1.5 and spread(after, dim) < 1 + 1e-6
    assert spread(before, 1 - dim) < 1.35, "along the shorter one they are alike already"


def test_what_is_zero_stays_zero() -> None:
    sizes = factored.running_rms(torch.zeros(1, 3), torch.zeros(1, 3), beta=0.9)
    assert not sizes.any()
    assert not neurons.even_(torch.zeros(1, 3, 4), sizes, "columns").any()


def test_the_first_mean_is_taken_as_it_is() -> None:
    squares = torch.tensor([[1.0, 4.0]])
    first = factored.running_rms(torch.zeros(1, 2), squares, beta=0.9)
    assert first.tolist() == [[1.0, 2.0]]
    then = factored.running_rms(first, torch.zeros(1, 2), beta=0.75)
    assert torch.allclose(then, first * 0.75**0.5)
