"""Factors of many gradients: each as if it were alone, whatever its size, shape and dtype."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hf_relopt.backends import matrices as cutting
from hf_relopt.backends.factored import Factors, follow
from hf_relopt.backends.matrices import Matrices
from tests.backends.one_process import alone
from tests.tensors import gradient, same_bits

SHAPES = ((6, 4), (3, 8), (6, 4), (5, 5), (6, 4), (1, 3))


def run(grads: Sequence[Tensor], state: Sequence[Factors], beta: float = 0.9) -> list[Tensor]:
    stacks = [grad if grad.dim() == 3 else grad.unsqueeze(0) for grad in grads]
    own = [
        Matrices(stack, stack.double().square().mean().sqrt(), stack.numel(), *stack.shape[1:])
        for stack in stacks
    ]
    return follow(own, state, beta, alone)


def empty(shape: Sequence[int], learn: bool = True) -> Factors:
    count, rows, columns = shape if len(shape) == 3 else (1, *shape)
    return Factors(torch.zeros(count, rows), torch.zeros(count, columns), torch.tensor(learn))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_is_followed_as_if_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for limit in (None, 1):
        if limit:
            monkeypatch.setattr(cutting, "piece_size", lambda device: 1)
        state = [empty(shape) for shape in SHAPES]
        for step in range(3):
            grads = [
                gradient(torch.empty(shape, dtype=dtype), step * 10 + n)
                for n, shape in enumerate(SHAPES)
            ]
            found = run(grads, state)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        assert all(each.dtype is wide for each in found)
        kept = [tensor for each in state for tensor in (each.rows, each.columns)]
        assert all(tensor.dtype is torch.float32 and tensor.all() for tensor in kept)
        ends.append([*found, *kept])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**100])
def test_the_size_of_a_gradient_does_not_matter(factor: float) -> None:
    """Squares of 1e-30 and 1e30 have no room in float32."""
    grad = gradient(torch.empty(6, 4), 1)
    states = empty((6, 4)), empty((6, 4))
    (one,), (other,) = (
        run([each], [state]) for each, state in zip((grad, grad * factor), states, strict=True)
    )
    assert same_bits(one, other)
    assert same_bits(states[0].rows, states[1].rows)


def test_a_matrix_without_a_gradient_rests() -> None:
    state = empty((3, 4, 5))
    run([gradient(torch.empty(3, 4, 5), 1)], [state])
    holed = gradient(torch.empty(3, 4, 5), 2)
    holed[1] = 0.0
    before = state.rows.clone()
    (found,) = run([holed], [state])
    assert not found[1].any() and found[0].all()
    assert same_bits(state.rows[1], before[1]) and not same_bits(state.rows[0], before[0])


def test_what_is_not_usable_is_not_taken_in() -> None:
    state = empty((4, 5), learn=False)
    run([torch.full((4, 5), torch.nan)], [state])
    assert not state.rows.any() and not state.columns.any()


def test_nothing_to_do() -> None:
    assert run([], []) == []
