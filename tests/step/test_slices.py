"""Rows and blocks: what has a norm of its own is stepped as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from tests.cases import MIN_SCALE
from tests.frames import each_direction, each_own_direction, slack_of
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=_name)
@pytest.mark.parametrize("bound", [None, "sphere"])
@pytest.mark.parametrize("direction", ["gradient", "momentum", "adam"])
def test_rows_without_gradient_keep_every_bit(
    direction: str, bound: str | None, dtype: torch.dtype
) -> None:
    """As an embedding's rows of tokens that do not occur; -0.0 and 3-D tables too."""
    params = [nn.Parameter(gradient(torch.empty(s, dtype=dtype), 1)) for s in ((9, 4), (9, 2, 3))]
    with torch.no_grad():
        for param in params:
            param[3], param[5] = 0.0, -0.0
    before = snapshot(params)
    options = {"direction": direction, "scale": "row", "bound": bound}
    optimizer = Fromage(params, lr=0.125, **options)
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


@pytest.mark.parametrize("direction", ["momentum", "adam", "spectral"])
@pytest.mark.parametrize(("scale", "shape"), [("row", (5, 4)), ("block", (5, 4, 3))])
def test_what_had_a_gradient_once_rests_without_one(
    scale: str, shape: tuple[int, ...], direction: str
) -> None:
    """A momentum has no size: by it alone, rows and experts would go on by whole steps."""
    if (scale, direction) == ("row", "spectral"):
        return
    param = nn.Parameter(gradient(torch.empty(shape), 1))
    optimizer = Fromage([param], lr=0.1, direction=direction, scale=scale)
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


def test_a_rows_step_hangs_on_that_row_alone() -> None:
    ends = []
    for loud in (1.0, 1000.0):
        param = nn.Parameter(gradient(torch.empty(5, 6), 1))
        optimizer = Fromage([param], lr=0.1, scale="row")
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
) -> None:
    """A fused QKV steps as its three matrices would, a tensor of experts as each of them."""
    fused = nn.Parameter(gradient(torch.empty(shape), 1, 0.1))
    alone = [nn.Parameter(part) for part in _cut(fused.detach(), dim, sizes)]
    split = {} if sizes is None else {"split_dim": dim, "split_sizes": given}
    options = {"lr": 0.1, "direction": direction, **bound}
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
