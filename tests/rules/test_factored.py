"""Factored second moments in float64: where they end, and what they start with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_relopt.rules import factored
from tests.tensors import gradient


def take_in(grads: list[Tensor], beta: float) -> tuple[Tensor, Tensor]:
    """r and c of one matrix."""
    rows, columns = (torch.zeros(1, n, dtype=torch.float64) for n in grads[0].shape)
    for grad in grads:
        squares = (grad / grad.square().mean().sqrt()).square().unsqueeze(0)
        sums = factored.sums_of_columns(squares, rows)
        columns = factored.running_rms(columns, sums / grad.shape[0], beta=beta)
        sums = factored.sums_of_rows(squares, columns)
        rows = factored.running_rms(rows, sums / grad.shape[1], beta=beta)
    return rows[0], columns[0]


def sizes(matrix: Tensor, dim: int) -> Tensor:
    return matrix.square().mean(dim=dim).sqrt()


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_of_one_gradient_they_are_its_sinkhorn_scales(beta: float) -> None:
    grad = gradient(torch.empty(6, 4, dtype=torch.float64), 1)
    grad = grad * torch.logspace(-3, 3, 6, dtype=torch.float64).unsqueeze(1)
    rows, columns = take_in([grad] * 400, beta)
    found = factored.direction(grad.unsqueeze(0), rows.unsqueeze(0), columns.unsqueeze(0))[0]
    for dim in (0, 1):
        ratios = sizes(found, dim) / sizes(found, dim).mean()
        assert torch.allclose(ratios, torch.ones(()).double(), rtol=1e-4)


def test_where_there_is_no_gradient_yet_it_is_zero() -> None:
    """The first one that comes is taken as it is, whatever others have met before."""
    grad = gradient(torch.empty(4, 3, dtype=torch.float64), 2)
    grad[1], grad[:, 2] = 0.0, 0.0
    rows, columns = take_in([grad] * 50, 0.99)
    assert rows[1] == 0 and columns[2] == 0 and (rows[[0, 2, 3]] > 0).all()
    found = factored.direction(grad.unsqueeze(0), rows.unsqueeze(0), columns.unsqueeze(0))[0]
    assert found.isfinite().all() and not found[1].any() and not found[:, 2].any()
    late = gradient(torch.empty(4, 3, dtype=torch.float64), 2)
    rows, columns = take_in([grad] * 50 + [late], 0.99)
    found = factored.direction(late.unsqueeze(0), rows.unsqueeze(0), columns.unsqueeze(0))[0]
    assert found.abs().max() < 3.0


def test_a_large_gradient_counts_no_more_than_a_small_one() -> None:
    grads = [gradient(torch.empty(4, 3, dtype=torch.float64), n) for n in range(5)]
    other = [grad * 10.0**n for n, grad in enumerate(grads)]
    for one, two in zip(take_in(grads, 0.9), take_in(other, 0.9), strict=True):
        assert torch.allclose(one, two, rtol=1e-12)
