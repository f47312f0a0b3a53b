"""Rows, blocks, vectors and the size of gradients under every direction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from tests.cases import MIN_SCALE
from tests.frames import each_own_direction, each_pair, frame_of
from tests.tensors import assert_close, gradient, norm, run, same_bits, snapshot, state_of


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")


# --- rows and blocks ----------------------------------------------------------------------


def test_a_step_inside_autocast_is_the_step_outside() -> None:
    """Its matrices are multiplied in the precision that the step has chosen."""
    ends = []
    for inside in (False, True):
        param = nn.Parameter(gradient(torch.empty(40, 30), 1, 0.1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            run(Fromage([param], lr=0.02, direction="spectral"), [param], (1, 2, 3))
        ends.append(param)
    assert same_bits(*ends)


# --- vectors and scales of gradients ------------------------------------------------------


def _matrix() -> nn.Parameter:
    """A spectral direction without one is refused."""
    return nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(5,), (), (1,), (1, 5), (5, 1, 1)], ids=str)
@each_own_direction
def test_vectors_go_the_same_way_under_every_direction(
    direction: str, shape: tuple[int, ...]
) -> None:
    """Whatever momentum and bound their group has; and the first step is lr * s for each entry."""
    ends = []
    for options in ({}, {"momentum": 0.5}, {"bound": "sphere"}, {"p_bound": 0.5}):
        param = nn.Parameter(gradient(torch.empty(shape), 1) + 2.0)
        first, size = param.detach().clone(), norm(param) / max(param.numel(), 1) ** 0.5
        optimizer = Fromage([param, _matrix()], lr=0.125, direction=direction, **options)
        run(optimizer, [param], (1,))
        expected = 0.125 * size * torch.ones(shape)
        assert torch.allclose((param.detach() - first).abs(), expected, rtol=1e-5)
        run(optimizer, [param], range(2, 6))
        ends.append(param)
    assert all(same_bits(ends[0], end) for end in ends[1:])


@each_own_direction
def test_vectors_that_start_at_zero_move_by_min_scale_and_cross_zero(direction: str) -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = Fromage([param, _matrix()], lr=0.125, direction=direction)
    param.grad = torch.tensor([1.0, -2.0, 3.0, 1e-3])
    optimizer.step()
    signs = param.grad.sign()
    assert torch.allclose(param.detach(), -0.125 * MIN_SCALE * signs, rtol=1e-5)
    for _ in range(60):
        param.grad = -10 * signs
        optimizer.step()
    assert (param.detach() * signs > 0).all()


@each_pair
def test_the_scale_of_gradients_is_ignored(direction: str, scale: str) -> None:
    """A million times larger or smaller; powers of two, so that only sums may round otherwise."""
    ends = []
    for factor in (1.0, 2.0**20, 2.0**-20):
        params, groups = frame_of(torch.float32, direction, scale)
        optimizer = Fromage(groups, lr=0.05)
        for number in (1, 2, 3):
            for index, param in enumerate(params):
                param.grad = gradient(param, 100 * number + index) * factor
            optimizer.step()
        ends.append(params)
    for end in ends[1:]:
        assert_close(end, ends[0], torch.float32)


def test_entries_without_second_moment_stay() -> None:
    """g^2 below float32's smallest normal number: no epsilon, and no quotient of nothings."""
    param = nn.Parameter(gradient(torch.empty(3, 4), 1, 0.1))
    vector = nn.Parameter(torch.ones(4))
    before = snapshot([param, vector])
    optimizer = Fromage([param, vector], lr=0.1, direction="adam", bound="sphere")
    for number in (1, 2, 3):
        param.grad, vector.grad = gradient(param, number), gradient(vector, number)
        vector.grad[2] = 1e-30
        param.grad.fill_(1e-30)
        optimizer.step()
    assert same_bits(param, before[0]) and float(state_of(optimizer, param)["step"]) == 3
    assert float(vector.detach()[2]) == 1.0 and float(vector.detach()[1]) != 1.0
