"""Rows, blocks, vectors and the size of gradients under every direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from tests.cases import MIN_SCALE
from tests.frames import (
    each_backend,
    each_direction,
    each_own_direction,
    each_pair,
    frame_of,
    slack_of,
)
from tests.oracles.frame import frame
from tests.tensors import (
    assert_close,
    assert_near_oracle,
    bits,
    gradient,
    norm,
    run,
    same_bits,
    snapshot,
    state_of,
    to_numpy,
)


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")


# --- rows and blocks ----------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=_name)
@pytest.mark.parametrize("bound", [None, "sphere"])
@pytest.mark.parametrize("direction", ["gradient", "momentum", "adam"])
def test_rows_without_gradient_keep_every_bit(
    direction: str, bound: str | None, dtype: torch.dtype, backend: str
) -> None:
    """As an embedding's rows of tokens that do not occur; -0.0 and 3-D tables too."""
    params = [nn.Parameter(gradient(torch.empty(s, dtype=dtype), 1)) for s in ((9, 4), (9, 2, 3))]
    with torch.no_grad():
        for param in params:
            param[3], param[5] = 0.0, -0.0
    before = snapshot(params)
    options = {"direction": direction, "scale": "row", "bound": bound}
    optimizer = Fromage(params, lr=0.125, backend=backend, **options)
    used = torch.tensor([0, 3, 7])
    for number in range(1, 6):
        for param in params:
            grad = gradient(param, number)
            param.grad = torch.zeros_like(grad)
            param.grad[used] = grad[used]
        optimizer.step()
    unused = [row for row in range(9) if row not in used]
    for param, old in zip(params, before, strict=True):
        assert same_bits(param[unused], old[unused])
        assert all((bits(param[row]) != bits(old[row])).any() for row in used)


@each_backend
@pytest.mark.parametrize("direction", ["momentum", "adam", "spectral"])
@pytest.mark.parametrize(("scale", "shape"), [("row", (5, 4)), ("block", (5, 4, 3))])
def test_what_had_a_gradient_once_rests_without_one(
    scale: str, shape: tuple[int, ...], direction: str, backend: str
) -> None:
    """A momentum has no size: by it alone, rows and experts would go on by whole steps."""
    if (scale, direction) == ("row", "spectral"):
        return
    param = nn.Parameter(gradient(torch.empty(shape), 1))
    optimizer = Fromage([param], lr=0.1, direction=direction, scale=scale, backend=backend)
    param.grad = gradient(param, 2)
    optimizer.step()
    after, was = param.detach().clone(), state_of(optimizer, param)["momentum"].clone()
    for number in range(3, 6):
        param.grad = gradient(param, number)
        param.grad[1:3] = 0.0
        optimizer.step()
    assert same_bits(param[1:3], after[1:3])
    assert all((param[place] != after[place]).any() for place in (0, 3, 4))
    momentum = state_of(optimizer, param)["momentum"]
    assert (momentum[1:3].abs() < was[1:3].abs()).all()


@each_own_direction
def test_no_experts_are_no_work(direction: str) -> None:
    params = [nn.Parameter(torch.empty(0, 5, 5)), nn.Parameter(torch.ones(2, 5, 5))]
    for some in (params[:1], params):
        optimizer = Fromage(some, lr=0.1, direction=direction, scale="block")
        run(optimizer, some, (1, 2))
    assert torch.isfinite(params[1]).all() and (params[1] != 1).any()


@each_backend
def test_a_rows_step_hangs_on_that_row_alone(backend: str) -> None:
    ends = []
    for loud in (1.0, 1000.0):
        param = nn.Parameter(gradient(torch.empty(5, 6), 1))
        optimizer = Fromage([param], lr=0.1, scale="row", backend=backend)
        for number in (1, 2, 3):
            param.grad = gradient(param, number)
            param.grad[0] *= loud
            optimizer.step()
        ends.append(param)
    assert_close([ends[0]], [ends[1]], torch.float32)
    path = frame(
        to_numpy(gradient(torch.empty(5, 6), 1)[2]),
        [to_numpy(gradient(ends[0], number)[2]) for number in (1, 2, 3)],
        0.1,
        min_scale=MIN_SCALE,
    )
    assert_near_oracle(ends[0][2], path.last, torch.float32, 3)


def _cut(tensor: torch.Tensor, dim: int, sizes: list[int] | None) -> list[torch.Tensor]:
    each = tensor.unbind(0) if sizes is None else tensor.split(sizes, dim)
    return [part.clone() for part in each]


@each_backend
@pytest.mark.parametrize("bound", [{"p_bound": 1.1}, {"bound": "sphere"}], ids=str)
@pytest.mark.parametrize(
    ("shape", "dim", "sizes", "given"),
    [
        ((9, 4), 0, [4, 2, 3], (4, 2, 3)),
        ((9, 4), 0, [3, 3, 3], 3),
        ((4, 9), 1, [6, 3], [6, 3]),
        ((3, 4, 5), 0, None, None),
        ((2, 3, 4, 2), 0, None, None),
    ],
    ids=str,
)
@each_direction
def test_blocks_are_the_same_matrices_given_separately(
    direction: str,
    shape: tuple[int, ...],
    dim: int,
    sizes: list[int] | None,
    given: Any,
    bound: dict[str, Any],
    backend: str,
) -> None:
    """A fused QKV steps as its three matrices would, a tensor of experts as each of them."""
    fused = nn.Parameter(gradient(torch.empty(shape), 1, 0.1))
    alone = [nn.Parameter(part) for part in _cut(fused.detach(), dim, sizes)]
    split = {} if sizes is None else {"split_dim": dim, "split_sizes": given}
    options = {"lr": 0.1, "direction": direction, "backend": backend, **bound}
    one = Fromage([fused], scale="block", **split, **options)
    other = Fromage(alone, **options)
    for number in range(1, 6):
        fused.grad = gradient(fused, number)
        for param, grad in zip(alone, _cut(fused.grad, dim, sizes), strict=True):
            param.grad = grad
        one.step()
        other.step()
    for part, param in zip(_cut(fused.detach(), dim, sizes), alone, strict=True):
        gap = float((part - param.detach()).norm()) / norm(param)
        assert gap <= 5 * (1e-6 + slack_of(direction))
    anchors = [float(state_of(other, param)["anchor_norm"]) for param in alone]
    assert state_of(one, fused)["anchor_norm"].tolist() == pytest.approx(anchors, rel=1e-6)


@pytest.mark.parametrize("direction", ["momentum", "spectral"])
def test_one_block_is_the_tensor(direction: str) -> None:
    ends = []
    for options in ({}, {"scale": "block", "split_sizes": 1}):
        param = nn.Parameter(gradient(torch.empty(4, 3), 1, 0.1))
        run(Fromage([param], lr=0.1, direction=direction, **options), [param], (1, 2, 3))
        ends.append(param)
    assert_close([ends[0]], [ends[1]], torch.float32)


def test_a_step_inside_autocast_is_the_step_outside() -> None:
    """Its matrices are multiplied in the precision that the step has chosen."""
    ends = []
    for inside in (False, True):
        param = nn.Parameter(gradient(torch.empty(40, 30), 1, 0.1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            run(Fromage([param], lr=0.02, direction="spectral"), [param], (1, 2, 3))
        ends.append(param)
    assert same_bits(*ends)


@each_own_direction
def test_a_gradient_beyond_the_memory_is_skipped_and_forgotten(direction: str) -> None:
    """Weights in float64, and a momentum in float32 that would stay infinite."""
    param = nn.Parameter(gradient(torch.empty(6, 4, dtype=torch.float64), 1))
    optimizer = Fromage([param], lr=0.02, direction=direction)
    before = param.detach().clone()
    param.grad = torch.full_like(param, 1e40)
    optimizer.step()
    assert same_bits(param, before) and float(state_of(optimizer, param)["skipped"]) == 1
    run(optimizer, [param], (2,))
    assert not same_bits(param, before) and bool(param.isfinite().all())


# --- vectors and scales of gradients ------------------------------------------------------


def _matrix() -> nn.Parameter:
    """A spectral direction without one is refused."""
    return nn.Parameter(torch.ones(2, 2))


@each_backend
@pytest.mark.parametrize("shape", [(5,), (), (1,), (1, 5), (5, 1, 1)], ids=str)
@each_own_direction
def test_vectors_go_the_same_way_under_every_direction(
    direction: str, shape: tuple[int, ...], backend: str
) -> None:
    """Whatever momentum and bound their group has; and the first step is lr * s for each entry."""
    ends = []
    for options in ({}, {"momentum": 0.5}, {"bound": "sphere"}, {"p_bound": 0.5}):
        param = nn.Parameter(gradient(torch.empty(shape), 1) + 2.0)
        first, size = param.detach().clone(), norm(param) / max(param.numel(), 1) ** 0.5
        optimizer = Fromage(
            [param, _matrix()], lr=0.125, direction=direction, backend=backend, **options
        )
        run(optimizer, [param], (1,))
        expected = 0.125 * size * torch.ones(shape)
        assert torch.allclose((param.detach() - first).abs(), expected, rtol=1e-5)
        run(optimizer, [param], range(2, 6))
        ends.append(param)
    assert all(same_bits(ends[0], end) for end in ends[1:])


@each_backend
@each_own_direction
def test_vectors_that_start_at_zero_move_by_min_scale_and_cross_zero(
    direction: str, backend: str
) -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = Fromage([param, _matrix()], lr=0.125, direction=direction, backend=backend)
    param.grad = torch.tensor([1.0, -2.0, 3.0, 1e-3])
    optimizer.step()
    signs = param.grad.sign()
    assert torch.allclose(param.detach(), -0.125 * MIN_SCALE * signs, rtol=1e-5)
    for _ in range(60):
        param.grad = -10 * signs
        optimizer.step()
    assert (param.detach() * signs > 0).all()


@each_backend
@each_pair
def test_the_scale_of_gradients_is_ignored(direction: str, scale: str, backend: str) -> None:
    """A million times larger or smaller; powers of two, so that only sums may round otherwise."""
    ends = []
    for factor in (1.0, 2.0**20, 2.0**-20):
        params, groups = frame_of(torch.float32, direction, scale)
        optimizer = Fromage(groups, lr=0.05, backend=backend)
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
