"""Directions: what a step follows in place of the gradient, and the memory that it takes.

    gradient   U = g
    momentum   m <- mu m + (1 - mu) g                     U = m, or (1 - mu) g + mu m (Nesterov)
    spectral   the same memory                            U = orthogonal factor of the above
    adam       m as above,  v <- beta v + (1 - beta) g^2  U = (m/(1 - mu^t)) / sqrt(v/(1 - beta^t))

The orthogonal factor of M = A S B^T (its singular value decomposition) is A B^T: all singular
values become one. Muon follows it (Jordan et al., 2024); here a fixed number of matrix
multiplications approximates it, with the polynomials of "The Polar Express" (Amsel, Persson,
Musco, Gower; 2025; arXiv 2505.16932).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_relopt.rules.madam import SMALLEST_SQUARE

# (a, b, c) of X <- a X + b (X X^T) X + c (X X^T)^2 X, one after the other, for singular values in
# [0.001, 1]. They come out in [0.846, 1.124].
_POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Rounding must not push a singular value out of an interval: each polynomial is stretched by it.
_SAFETY = 1.01


def keep(param: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The direction is the gradient itself: nothing is remembered."""
    return (param,)


def take_in(momentum: Tensor, grad: Tensor, *, decay: float) -> tuple[Tensor, ...]:
    """The new momentum."""
    return (momentum * decay + grad * (1 - decay),)


def take_in_square(
    momentum: Tensor, grad: Tensor, second_moment: Tensor, *, decay: float, beta: float
) -> tuple[Tensor, ...]:
    """The new momentum and the new second moment."""
    new = second_moment * beta + (grad * grad) * (1 - beta)
    return momentum * decay + grad * (1 - decay), new


def nesterov(momentum: Tensor, grad: Tensor, *, decay: float) -> Tensor:
    """A look ahead: the momentum as it would be after this gradient once more."""
    return torch.lerp(grad, momentum, decay)


def adam(
    momentum: Tensor, second_moment: Tensor, *, correction1: Tensor, correction2: Tensor
) -> Tensor:
    """m/c1 / sqrt(v/c2), elementwise; 0 where v is too small to be a float."""
    mean_square = second_moment / correction2
    unit = (momentum / correction1) / torch.sqrt(mean_square)
    return torch.where(mean_square < SMALLEST_SQUARE, 0.0, unit)


def orthogonal_factor(matrices: Tensor) -> Tensor:
    """The orthogonal factor of each matrix, by five polynomials in it.

    With s_i the singular values, those that are at least (sum s_i^4)^(1/4) / 1000 come out in
    [0.84, 1.13], smaller ones as at most 980 times what they were over that, and zero as zero.
    bfloat16 is rougher: [0.8, 1.2] from a hundredth on, and up to 1.4 for what is smaller.

    Args:
        matrices: [..., m, n], worked on in their own dtype.
    Returns: the same shape and dtype.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    # Sums of squares have no room for gradients of 1e-30 or 1e30.
    x = x / _positive(torch.linalg.vector_norm(x, torch.inf, dim=(-2, -1), keepdim=True))
    x = _iterate(x)
    return x.mT if tall else x


def _iterate(x: Tensor) -> Tensor:
    """All polynomials, one after the other, on wide or square matrices.

    p(X X^T) X is a polynomial of the small X X^T times X. For matrices that are at least twice as
    wide as they are high it is cheaper to go on with X X^T alone, p^2(X X^T) X X^T, and to multiply
    what has been gathered with X at the end of a run. A run squares X's condition, so low precision
    has to return to X in between.
    """
    square = x @ x.mT
    # |X X^T|^(1/2) is no less than the largest singular value, and much nearer to it than |X|.
    norm = _positive(torch.linalg.matrix_norm(square.float(), keepdim=True)).to(x.dtype)
    x, square = x / norm.sqrt(), square / norm
    first = 0
    for length in _runs(x):
        square = x @ x.mT if first else square
        x = _run(x, square, _POLYNOMIALS[first : first + length])
        first += length
    return x


def _runs(x: Tensor) -> tuple[int, ...]:
    if x.size(-1) < 2 * x.size(-2):
        return (1, 1, 1, 1, 1)
    return (2, 3) if x.dtype is torch.bfloat16 else (5,)


def _run(x: Tensor, square: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """Some of the polynomials, given X X^T; X is multiplied once."""
    gathered = None
    for place, (a, b, c) in enumerate(polynomials):
        p = b / _SAFETY**3 * square + c / _SAFETY**5 * (square @ square)
        p.diagonal(dim1=-2, dim2=-1).add_(a / _SAFETY)
        gathered = p if gathered is None else p @ gathered
        if place + 1 < len(polynomials):
            square = (p @ square) @ p
    assert gathered is not None
    return gathered @ x


def _positive(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm, 1.0)
