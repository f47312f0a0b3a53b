"""Sinkhorn normalisation in float64: what comes out has rows and columns of one size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_relopt.rules import sinkhorn
from tests.oracles.frame import balanced
from tests.tensors import gradient

SHAPES = ((6, 4), (4, 6), (5, 5), (1, 7), (7, 1))


def balance(grad: torch.Tensor, iterations: int) -> torch.Tensor:
    squares = grad.square().unsqueeze(0)
    columns = torch.ones(1, grad.shape[1], dtype=grad.dtype)
    for _ in range(iterations):
        rows = sinkhorn.scales(sinkhorn.sums_of_rows(squares, columns), grad.shape[1])
        columns = sinkhorn.scales(sinkhorn.sums_of_columns(squares, rows), grad.shape[0])
    return sinkhorn.balanced(grad.unsqueeze(0), rows, columns)[0]


def sizes(matrix: torch.Tensor, dim: int) -> torch.Tensor:
    return matrix.square().mean(dim=dim).sqrt()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_scales_say_what_alternate_normalisation_does(
    shape: tuple[int, int], iterations: int
) -> None:
    grad = gradient(torch.empty(shape, dtype=torch.float64), 1)
    expected = balanced(grad.numpy(), iterations)
    np.testing.assert_allclose(balance(grad, iterations).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_and_columns_end_at_root_mean_square_one(shape: tuple[int, int]) -> None:
    grad = gradient(torch.empty(shape, dtype=torch.float64), 2)
    grad = grad * torch.logspace(-6, 6, shape[0], dtype=torch.float64).unsqueeze(1)
    once, often = balance(grad, 1), balance(grad, 500)
    for dim in (0, 1):
        assert torch.allclose(sizes(often, dim), torch.ones(()).double(), rtol=1e-6)
    assert torch.allclose(sizes(once, 0), torch.ones(()).double(), rtol=1e-12), "columns come last"
    assert torch.equal(often.sign(), grad.sign())


def test_zero_rows_and_columns_stay_zero() -> None:
    grad = gradient(torch.empty(6, 5, dtype=torch.float64), 3)
    grad[2], grad[:, 4] = 0.0, 0.0
    found = balance(grad, 5)
    assert found.isfinite().all()
    assert not found[2].any() and not found[:, 4].any()
    assert torch.allclose(sizes(found, 0)[:4], torch.ones(()).double())
    assert not balance(torch.zeros(3, 2, dtype=torch.float64), 5).any()


def test_sizes_of_rows_and_columns_do_not_matter() -> None:
    grad = gradient(torch.empty(5, 4, dtype=torch.float64), 4)
    rows = torch.logspace(-3, 3, 5, dtype=torch.float64).unsqueeze(1)
    columns = torch.logspace(2, -2, 4, dtype=torch.float64)
    scaled, plain = balance(rows * grad * columns, 500), balance(grad, 500)
    assert torch.allclose(scaled, plain, rtol=1e-6)
