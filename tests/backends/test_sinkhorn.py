"""Balancing of many gradients: each as if it were alone, whatever its size, shape and dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_relopt.backends import matrices, sinkhorn
from hf_relopt.backends.matrices import Matrices
from hf_relopt.backends.sinkhorn import balance
from tests.backends.one_process import alone
from tests.oracles.frame import balanced
from tests.tensors import gradient, same_bits, to_numpy

SHAPES = ((6, 4), (3, 8), (6, 4), (5, 5), (6, 4), (1, 3))


def unbalanced(grad: Tensor) -> Matrices:
    """One matrix, or a stack of them."""
    size = grad.double().square().mean().sqrt()
    stack = grad if grad.dim() == 3 else grad.unsqueeze(0)
    return Matrices(stack, size, grad.numel(), *stack.shape[1:])


def grads(dtype: torch.dtype) -> list[Tensor]:
    return [gradient(torch.empty(shape, dtype=dtype), n) for n, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_is_balanced_as_if_alone(
    dtype: torch.dtype, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not stacked:
        monkeypatch.setattr(matrices, "piece_size", lambda device: 1)
    given = grads(dtype)
    found = balance([unbalanced(grad) for grad in given], 3, alone)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for grad, (result,) in zip(given, found, strict=True):
        assert result.dtype is wide and result.shape == grad.shape
        close = 1e-12 if wide is torch.float64 else 1e-5
        np.testing.assert_allclose(to_numpy(result), balanced(to_numpy(grad), 3), rtol=close)


def test_alike_matrices_share_their_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = sinkhorn.sinkhorn.sums_of_rows

    def counted(squares: Tensor, scales: Tensor) -> Tensor:
        seen.append(len(squares))
        return original(squares, scales)

    monkeypatch.setattr(sinkhorn.sinkhorn, "sums_of_rows", counted)
    balance([unbalanced(grad) for grad in grads(torch.float32)], 1, alone)
    assert sorted(seen) == [1, 1, 1, 3]


def test_blocks_of_a_stack_are_matrices_of_their_own() -> None:
    stack = gradient(torch.empty(3, 4, 5), 1) * torch.tensor([1e-4, 1.0, 1e4]).view(3, 1, 1)
    (found,) = balance([unbalanced(stack)], 2, alone)
    for block, result in zip(stack, found, strict=True):
        np.testing.assert_allclose(
            to_numpy(result), balanced(to_numpy(block).astype(np.float64), 2), rtol=1e-5
        )


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**100])
def test_the_size_of_a_gradient_does_not_matter(factor: float) -> None:
    """Squares of 1e-30 and 1e30 have no room in float32."""
    grad = gradient(torch.empty(6, 4), 1)
    (one,), (other,) = (balance([unbalanced(each)], 2, alone) for each in (grad, grad * factor))
    assert same_bits(one, other)


def test_nothing_to_do() -> None:
    assert balance([], 5, alone) == []
    (found,) = balance([unbalanced(torch.zeros(3, 2))], 5, alone)
    assert not found.any()
