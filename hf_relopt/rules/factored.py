"""Factored second moments: a gradient over the usual sizes of its rows and of its columns.

    c_j^2 <- beta c_j^2 + (1 - beta) mean_i (g_ij / r_i)^2,      g over its root mean square
    r_i^2 <- beta r_i^2 + (1 - beta) mean_j (g_ij / c_j)^2
    U_ij = g_ij / (r_i c_j)

"Adafactor: adaptive learning rates with sublinear memory cost" (Shazeer and Stern, 2018; arXiv
1804.04235) puts a product of rank one in the place of Adam's sqrt(v_ij): m + n numbers instead of
m n. There r and c are the sizes of rows and columns as they are. Here each is measured with the
other taken out, as Sinkhorn and Knopp (1967) do it: one iteration in a step, on a running mean in
place of one gradient. What has its first gradient takes that for its mean; r_i is 1 until then.

Only the direction of U counts, and only the ratios of the sizes matter: each gradient is taken in
at size one. The roots are kept, which have twice the room of squares. Matrices are [m, n] or stacks
of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_relopt.rules import sinkhorn


def sums_of_columns(squares: Tensor, row_sizes: Tensor) -> Tensor:
    """sum_i (g_ij / r_i)^2: [count, m, n] and [count, m] -> [count, n]."""
    scales = torch.where(row_sizes > 0, row_sizes.square().reciprocal(), 1.0)
    return sinkhorn.sums_of_columns(squares, scales)


def sums_of_rows(squares: Tensor, column_sizes: Tensor) -> Tensor:
    """sum_j (g_ij / c_j)^2: [count, m, n] and [count, n] -> [count, m]."""
    return sinkhorn.sums_of_rows(squares, inverse(column_sizes).square())


def running_rms(kept: Tensor, mean_squares: Tensor, *, beta: float) -> Tensor:
    """The new r, or c; 0 as long as there has been no gradient."""
    squares = torch.lerp(mean_squares, kept.square(), beta)
    return torch.where(kept > 0, squares, mean_squares).sqrt()


def direction(grads: Tensor, row_sizes: Tensor, column_sizes: Tensor) -> Tensor:
    """U: [count, m, n], [count, m] and [count, n] -> [count, m, n]."""
    return grads * inverse(row_sizes).unsqueeze(-1) * inverse(column_sizes).unsqueeze(-2)


def inverse(sizes: Tensor) -> Tensor:
    """0 where there has been no gradient."""
    return torch.where(sizes > 0, sizes.reciprocal(), 0.0)
