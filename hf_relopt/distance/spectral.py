"""The largest singular value of a matrix that is read in blocks of rows.

Small matrices are left to torch.linalg; for large ones the Lanczos iteration on W^T W needs one
product with W and one with its transpose per step, and never W itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Up to this many entries on the shorter side torch.linalg is fast enough.
SMALL = 128
# Lanczos stops when a step changes the value by less than this share, or after so many steps.
TOLERANCE, MAX_STEPS = 1e-6, 100

Blocks = Callable[[], Iterable[Tensor]]


def spectral_norm(blocks: Blocks, rows: int, columns: int) -> float:
    """The largest singular value; its relative error is below 1e-4 (see the tests).

    Args:
        blocks: gives the matrix as [k, columns] blocks of consecutive rows, anew at each call.
        rows: of the matrix.
        columns: of the matrix.
    """
    if min(rows, columns) == 0:
        return 0.0
    if min(rows, columns) <= SMALL and rows * columns <= 2**24:
        whole = torch.cat([block.double() for block in blocks()])
        return float(torch.linalg.matrix_norm(whole, ord=2))
    return _lanczos(blocks, columns)


def _lanczos(blocks: Blocks, columns: int) -> float:
    # With all vectors kept orthogonal, since the plain recurrence loses that.
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(columns, generator=generator, dtype=torch.float64)
    vector /= torch.linalg.vector_norm(vector)
    basis = [vector]
    diagonal: list[float] = []
    beside: list[float] = []
    value = 0.0
    for _ in range(min(MAX_STEPS, columns)):
        product = _gram(blocks, basis[-1])
        diagonal.append(float(basis[-1] @ product))
        kept = torch.stack(basis)
        for _ in range(2):
            product = product - kept.T @ (kept @ product)
        ritz = _tridiagonal(diagonal, beside)
        length = float(torch.linalg.vector_norm(product))
        settled = abs(ritz - value) <= TOLERANCE * ritz
        if ritz <= 0 or settled or length <= 1e-12 * ritz:
            return math.sqrt(max(ritz, 0.0))
        value = ritz
        beside.append(length)
        basis.append(product / length)
    return math.sqrt(value)


def _gram(blocks: Blocks, vector: Tensor) -> Tensor:
    """W^T W v, in the blocks' own precision, summed in float64."""
    total = torch.zeros_like(vector)
    for block in blocks():
        along = vector.to(block)
        total += (block.T @ (block @ along)).to(total)
    return total


def _tridiagonal(diagonal: list[float], beside: list[float]) -> float:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    return float(torch.linalg.eigvalsh(matrix)[-1])
