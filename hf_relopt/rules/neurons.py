"""Neuron-wise normalisation: the neurons of an orthogonalized momentum get one usual size.

    v_i^2 <- beta v_i^2 + (1 - beta) mean_j U_ij^2,      U_ij <- U_ij / v_i

as in "NorMuon: making Muon more efficient and scalable" (Li, Liu, Liang, Chen, Zhao, 2025; arXiv
2510.05491), where i is an output. Singular values that are all one make the rows or columns along
the shorter side of a matrix equally long already; here i goes along the longer side, whichever that
is. In a transformer these are the hidden neurons of its MLPs, on their way in and out. v runs on as
r and c do in rules/factored.py: the first mean is taken as it is.

Matrices are [m, n] or stacks of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_relopt.rules import factored


def sums(matrices: Tensor, over: str) -> Tensor:
    """Those of squares over "columns" (one for each row) or "rows": [count, m], [count, n].

    Args:
        matrices: [count, m, n] of entries whose squares have room in float32.
    """
    dim, wide = 2 if over == "columns" else 1, torch.promote_types(matrices.dtype, torch.float32)
    return torch.linalg.vector_norm(matrices, dim=dim, dtype=wide).square()


def even_(matrices: Tensor, sizes: Tensor, over: str) -> Tensor:
    """U over v, in place; 0 where v is."""
    return matrices.mul_(factored.inverse(sizes).unsqueeze(-1 if over == "columns" else -2))
