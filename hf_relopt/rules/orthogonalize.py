"""Orthogonalization: all singular values of a matrix become one.

With M = A S B^T, the singular value decomposition, the orthogonalized matrix is A B^T. Muon follows
that of its momentum (Jordan et al., 2024); here a fixed number of matrix multiplications
approximates it, with polynomials as in "The Polar Express" (Amsel, Persson, Musco, Gower; 2025;
arXiv 2505.16932).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# (a, b, c) of X <- a X + b (X X^T) X + c (X X^T)^2 X, one after the other. Each is the best of its
# degree for the interval that the one before leaves, the first for singular values in [0.004, 1];
# in the end they are in [0.873, 1.127].
_POLYNOMIALS = (
    (8.340980668025974, -24.59736786940365, 18.223024852918456),
    (3.9779944234377087, -2.9654342081377387, 0.5642720010276877),
    (3.3274785412878574, -2.4952367968355644, 0.5108133677613138),
    (2.3085645777761497, -1.675994456278577, 0.41957392878072947),
)
# Rounding must not push a singular value out of an interval: each polynomial is stretched by it.
_SAFETY = 1.01


def orthogonalize(matrices: Tensor) -> Tensor:
    """Each matrix with its singular values made one, by four polynomials in it.

    With s_i the singular values, those that are at least 0.004 (sum s_i^4)^(1/4) come out in
    [0.84, 1.13], smaller ones as at most 245 times what they were over that, and zero as zero.
    bfloat16 is rougher: [0.8, 1.15] from a hundredth on.

    Args:
        matrices: [m, n] or [count, m, n], worked on in their own dtype.
    Returns: the same shape and dtype.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    # Sums of squares have no room for gradients of 1e-30 or 1e30.
    largest = torch.linalg.vector_norm(x, torch.inf, dim=(-2, -1), keepdim=True)
    x = _iterate(x / largest.clamp(min=torch.finfo(x.dtype).smallest_normal))
    return x.mT if tall else x


def _iterate(x: Tensor) -> Tensor:
    """All polynomials, one after the other, on wide or square matrices, which are written to.

    p(X X^T) X is a polynomial of the small X X^T times X. For matrices that are at least twice as
    wide as they are high it is cheaper to go on with X X^T alone, p^2(X X^T) X X^T, and to multiply
    what has been gathered with X at the end of a run. A run squares X's condition, so low precision
    has to return to X in between.
    """
    square = x @ x.mT
    # |X X^T|^(1/2) is no less than the largest singular value, and much nearer to it than |X|.
    norm = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    norm = norm.clamp(min=torch.finfo(norm.dtype).smallest_normal)
    x.mul_(norm.rsqrt().to(x.dtype))
    square.mul_(norm.reciprocal().to(x.dtype))
    first = 0
    for length in _runs(x):
        square = x @ x.mT if first else square
        x = _run(x, square, _POLYNOMIALS[first : first + length])
        first += length
    return x


def _runs(x: Tensor) -> tuple[int, ...]:
    if x.size(-1) < 2 * x.size(-2):
        return (1,) * len(_POLYNOMIALS)
    return (2, 2) if x.dtype is torch.bfloat16 else (len(_POLYNOMIALS),)


def _run(x: Tensor, square: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """Some of the polynomials, given X X^T; X is multiplied once."""
    gathered = None
    for place, (a, b, c) in enumerate(polynomials):
        p = _multiply_add(square, square, square, b / _SAFETY**3, c / _SAFETY**5)
        if len(polynomials) == 1:
            return _multiply_add(x, p, x, a / _SAFETY, 1.0)
        p.diagonal(dim1=-2, dim2=-1).add_(a / _SAFETY)
        gathered = p if gathered is None else p @ gathered
        if place + 1 < len(polynomials):
            square = (p @ square) @ p
    assert gathered is not None
    return gathered @ x


def _multiply_add(term: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float) -> Tensor:
    """Returns beta term + alpha left @ right, rounded once."""
    together = torch.addmm if term.dim() == 2 else torch.baddbmm
    return together(term, left, right, beta=beta, alpha=alpha)
