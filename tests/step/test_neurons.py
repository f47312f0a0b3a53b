"""A spectral direction with a beta: which side has neurons, and what is kept of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage, create_optimizer
from tests.frames import MATRICES, slack_of
from tests.oracles.frame import frame
from tests.tensors import gradient, same_bits, state_of, to_numpy

WIDE: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((3, 8), {}),
    ((8, 3), {}),
    ((4, 9), {"split_sizes": (6, 3), "split_dim": 1}),
    ((9, 8), {"split_sizes": (6, 3)}),
    ((2, 3, 8), {"scale": "block"}),
]


@pytest.mark.parametrize(("shape", "split"), [*MATRICES, *WIDE], ids=str)
def test_each_matrix_has_neurons_of_its_own(shape: tuple[int, ...], split: dict[str, Any]) -> None:
    options = {"scale": "block" if split else "tensor", "beta": 0.8, **split}
    params = [nn.Parameter(gradient(torch.empty(shape), n)) for n in range(2)]
    optimizer = Fromage(params, 0.05, direction="spectral", **options)
    firsts = [to_numpy(param) for param in params]
    taken: list[list[np.ndarray]] = [[], []]
    for step in range(4):
        for own, param in zip(taken, params, strict=True):
            param.grad = gradient(param.detach(), 10 * step + len(own) + 1, 10.0**step)
            own.append(to_numpy(param.grad))
        optimizer.step()
    close = 1e-3 + slack_of("spectral")
    for param, first, grads in zip(params, firsts, taken, strict=True):
        path = frame(first, grads, 0.05, direction="spectral", min_scale=0.1, **options)
        np.testing.assert_allclose(to_numpy(param), path.last, rtol=close, atol=close / 10)


@pytest.mark.parametrize(("shape", "split", "kept"), [
    ((8, 3), {}, (8, 1)), ((3, 8), {}, (1, 8)), ((4, 4), {}, (4, 1)),
    ((8, 3), {"scale": "block", "split_sizes": 4}, (4, 3)),
    ((3, 8), {"scale": "block", "split_sizes": 2, "split_dim": 1}, (1, 8)),
    ((2, 3, 8), {"scale": "block"}, (2, 1, 8)), ((2, 8, 3), {"scale": "block"}, (2, 8, 1)),
    ((4, 3, 2), {}, (1, 3, 2)), ((8, 3, 2), {}, (8, 1, 1)),
], ids=str)  # fmt: skip
def test_neurons_lie_along_the_longer_side(
    shape: tuple[int, ...], split: dict[str, Any], kept: tuple[int, ...]
) -> None:
    param = nn.Parameter(gradient(torch.empty(shape), 1))
    optimizer = Fromage([param], direction="spectral", beta=0.95, **split)
    param.grad = gradient(torch.empty(shape), 2)
    optimizer.step()
    assert tuple(state_of(optimizer, param)["neuron_rms"].shape) == kept


def test_without_a_beta_nothing_is_kept_and_nothing_changes() -> None:
    """So a checkpoint from before goes on as it was."""
    ends = []
    for options in ({}, {"beta": None}):
        param = nn.Parameter(gradient(torch.empty(8, 3), 1))
        optimizer = Fromage([param], direction="spectral", **options)
        param.grad = gradient(torch.empty(8, 3), 2)
        optimizer.step()
        assert "neuron_rms" not in state_of(optimizer, param)
        ends.append(param)
    assert same_bits(*ends)


def test_a_gradient_that_is_not_usable_leaves_no_trace() -> None:
    param = nn.Parameter(gradient(torch.empty(8, 3), 1))
    optimizer = Fromage([param], direction="spectral", beta=0.9)
    param.grad = gradient(torch.empty(8, 3), 2)
    optimizer.step()
    kept, weight = state_of(optimizer, param)["neuron_rms"].clone(), param.detach().clone()
    for value in (0.0, float("nan")):
        param.grad = torch.full((8, 3), value)
        optimizer.step()
    assert same_bits(state_of(optimizer, param)["neuron_rms"], kept) and same_bits(param, weight)


def test_the_preset_has_it_for_matrices_and_others_read_none() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    groups = create_optimizer(model, "fromage_spectral", 0.02).param_groups
    assert {group["beta"] for group in groups if group["role"] == "matrix"} == {0.95}
    groups = create_optimizer(model, "fromage_spectral", 0.02, beta=0.9).param_groups
    assert {group["beta"] for group in groups if group["role"] == "matrix"} == {0.9}
    groups = create_optimizer(model, "muonh", 0.02).param_groups
    assert {group["beta"] for group in groups if group["role"] == "matrix"} == {None}
    with pytest.raises(ConfigError, match=r"beta is 0\.9"):
        Fromage(model.parameters(), direction="momentum", beta=0.9)
