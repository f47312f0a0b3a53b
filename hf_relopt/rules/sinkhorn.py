"""Sinkhorn normalisation: every row and every column of a gradient gets the same size.

    repeat:   U <- diag(r) U,  so that the root mean square of each row is 1
              U <- U diag(c),  the same of each column

as Sinkhorn and Knopp (1967) balance a matrix of squares. SWAN (Ma et al., 2024; arXiv 2412.13148)
and SinkGD (Scetbon et al., 2025; arXiv 2502.06742) train with such directions, which need no state.

Only the scales change from one iteration to the next, and they are sums over the squares of G:

    r_i <- n / sum_j G_ij^2 c_j,     c_j <- m / sum_i r_i G_ij^2,     U_ij = sqrt(r_i c_j) G_ij

Rows and columns that are all zero stay so. Matrices are [m, n] or stacks of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sums_of_rows(squares: Tensor, column_scales: Tensor) -> Tensor:
    """sum_j G_ij^2 c_j: [count, m, n] and [count, n] -> [count, m]."""
    return torch.matmul(squares, column_scales.unsqueeze(-1)).squeeze(-1)


def sums_of_columns(squares: Tensor, row_scales: Tensor) -> Tensor:
    """sum_i r_i G_ij^2: [count, m, n] and [count, m] -> [count, n]."""
    return torch.matmul(row_scales.unsqueeze(-2), squares).squeeze(-2)


def scales(sums: Tensor, length: int) -> Tensor:
    """What makes the mean square of rows or columns of ``length`` entries 1; 0 where all are 0."""
    return torch.where(sums > 0, length / sums, 0.0)


def balanced(grads: Tensor, row_scales: Tensor, column_scales: Tensor) -> Tensor:
    """U."""
    return grads * row_scales.sqrt().unsqueeze(-1) * column_scales.sqrt().unsqueeze(-2)
