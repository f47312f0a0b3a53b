"""The direction "factored": what is kept of each block, expert or convolution, and when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage
from tests.frames import MATRICES
from tests.oracles.frame import frame
from tests.tensors import gradient, same_bits, state_of, to_numpy


@pytest.mark.parametrize(("shape", "split"), MATRICES, ids=str)
def test_each_matrix_has_its_own_rows_and_columns(
    shape: tuple[int, ...], split: dict[str, Any]
) -> None:
    options = {"scale": "block" if split else "tensor", "beta": 0.8, **split}
    params = [nn.Parameter(gradient(torch.empty(shape), n)) for n in range(2)]
    optimizer = Fromage(params, 0.05, direction="factored", **options)
    firsts = [to_numpy(param) for param in params]
    taken: list[list[np.ndarray]] = [[], []]
    for step in range(4):
        for own, param in zip(taken, params, strict=True):
            param.grad = gradient(param.detach(), 10 * step + len(own) + 1, 10.0**step)
            if step == 2:
                param.grad[1] = 0.0
            own.append(to_numpy(param.grad))
        optimizer.step()
    for param, first, grads in zip(params, firsts, taken, strict=True):
        path = frame(first, grads, 0.05, direction="factored", min_scale=0.1, **options)
        np.testing.assert_allclose(to_numpy(param), path.last, rtol=2e-5, atol=1e-6)
        for name, expected in path.moments.items():
            found = state_of(optimizer, param)[name]
            assert tuple(found.shape) == expected.shape, name
            np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-5)


def test_a_size_that_rows_or_columns_have_for_long_does_not_matter() -> None:
    """Whatever their sizes, rows and columns move alike: that is what the factors are for."""
    ends = []
    rows, columns = torch.logspace(-6, 6, 6).unsqueeze(1), torch.logspace(4, -4, 4)
    for scales in (torch.ones(()), rows * columns):
        param = nn.Parameter(torch.ones(6, 4))
        optimizer = Fromage([param], 0.05, direction="factored", beta=0.9)
        for step in range(40):
            param.grad = gradient(torch.empty(6, 4), step).sign() * scales
            optimizer.step()
        ends.append(param.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-3)


def test_an_expert_without_a_gradient_rests_and_remembers() -> None:
    param = nn.Parameter(gradient(torch.empty(3, 4, 2), 1))
    optimizer = Fromage([param], 0.05, direction="factored", scale="block")
    for step in range(3):
        param.grad = gradient(torch.empty(3, 4, 2), step + 2)
        if step:
            param.grad[1] = 0.0
        before = param.detach().clone()
        kept = {n: v.clone() for n, v in state_of(optimizer, param).items()} if step else {}
        optimizer.step()
        if step:
            state = state_of(optimizer, param)
            assert same_bits(param.detach()[1], before[1])
            for name in ("row_rms", "column_rms"):
                assert same_bits(state[name][1], kept[name][1])
                assert not same_bits(state[name][0], kept[name][0])


def test_gradients_that_are_not_usable_leave_no_trace() -> None:
    param = nn.Parameter(gradient(torch.empty(4, 3), 1))
    optimizer = Fromage([param], 0.05, direction="factored")
    param.grad = gradient(torch.empty(4, 3), 2)
    optimizer.step()
    weight = param.detach().clone()
    kept = {name: value.clone() for name, value in state_of(optimizer, param).items()}
    for value in (0.0, float("nan"), float("inf")):
        param.grad = torch.zeros(4, 3)
        param.grad[0, 0] = value
        optimizer.step()
    state = state_of(optimizer, param)
    assert same_bits(param, weight) and float(state["skipped"]) == 2
    assert all(same_bits(state[name], kept[name]) for name in ("row_rms", "column_rms", "step"))


@pytest.mark.parametrize(("options", "words"), [
    ({"scale": "row"}, ["'row'", "'factored'", "direction='rms'"]),
    ({"momentum": 0.9}, ["momentum is 0.9", "'factored'"]),
    ({"beta": 1.0}, ["beta is 1.0", "0 <= beta < 1", "'factored'"]),
    ({"iterations": 2}, ["iterations is 2", "'sinkhorn'"]),
], ids=str)  # fmt: skip
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Fromage([nn.Parameter(torch.ones(3, 4))], direction="factored", **options)
    assert all(word in str(caught.value) for word in words), caught.value
