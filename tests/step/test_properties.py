"""Hypothesis: shapes, layouts, scales and group structures nobody thought of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_relopt import Fromage, Madam
from tests.cases import CASES, DTYPES, Case
from tests.tensors import (
    ULP,
    assert_close,
    assert_near_oracle,
    gradient,
    norm,
    same_bits,
    snapshot,
    to_numpy,
)

quick = settings(deadline=None, max_examples=60, derandomize=True)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
scales = st.integers(-15, 15).map(lambda power: 10.0**power)
seeds = st.integers(0, 10**6)
backends = st.sampled_from(["loop", "foreach"])
classes = st.sampled_from([Fromage, Madam])
cases = st.sampled_from(CASES)
cases_of_any_shape = st.sampled_from([case for case in CASES if case.takes_any_shape])
wide_dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])


@quick
@given(cases_of_any_shape, backends, wide_dtypes, shapes, scales, scales, seeds)
def test_any_scale_follows_the_oracle(
    case: Case,
    backend: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    weight_scale: float,
    grad_scale: float,
    seed: int,
) -> None:
    param = nn.Parameter(gradient(torch.empty(shape, dtype=dtype), seed, weight_scale))
    first, grads = to_numpy(param).copy(), []
    # Beside a matrix: "spectral" refuses vectors alone.
    both = [param, nn.Parameter(torch.ones(2, 2, dtype=dtype))]
    optimizer = case.make(both, lr=0.02, backend=backend, rounding="nearest")
    for number in range(3):
        param.grad = gradient(param, seed + 1 + number, grad_scale)
        grads.append(to_numpy(param.grad).copy())
        optimizer.step()
    assert param.shape == shape and torch.isfinite(param).all()
    if case.name == "adamw-groups":
        return  # its steps are absolute: at 1e-15 the float32 moments carry the result
    path = case.path(first, grads, 0.02)
    size = max(float(np.linalg.norm(weight)) for weight in (first, *path.weights))
    assert_near_oracle(param, path.last, dtype, steps=3, slack=case.slack, size=size)


@quick
@given(backends, st.sampled_from(DTYPES), shapes, seeds, st.sampled_from([0.001, 0.01, 0.3]))
def test_fromage_relative_step_is_what_the_rule_says(
    backend: str, dtype: torch.dtype, shape: tuple[int, ...], seed: int, lr: float
) -> None:
    param = nn.Parameter(gradient(torch.empty(shape, dtype=dtype), seed))
    old, size = to_numpy(param).copy(), norm(param)
    optimizer = Fromage([param], lr=lr, backend=backend, rounding="nearest")
    param.grad = gradient(param, seed + 1)
    optimizer.step()
    if size == 0.0 or norm(param.grad) == 0.0:
        return
    moved = np.linalg.norm(to_numpy(param) * math.sqrt(1 + lr**2) - old) / size
    assert abs(moved - lr) <= 2 * ULP[dtype] + 1e-6


@quick
@given(classes, backends, scales, scales, seeds)
def test_the_scale_of_gradients_is_ignored(
    build: type, backend: str, one: float, other: float, seed: int
) -> None:
    """Powers of two are exact, so the results are equal to the last bits of the sums."""
    ends = []
    for scale in (one, other):
        exact = 2.0 ** round(math.log2(scale))
        param = nn.Parameter(gradient(torch.empty(6, 5), seed))
        optimizer = build([param], lr=0.02, backend=backend)
        for number in range(3):
            param.grad = gradient(param, seed + 1 + number) * exact
            optimizer.step()
        ends.append(param)
    assert_close([ends[0]], [ends[1]], torch.float32)


# --- layouts ------------------------------------------------------------------------------


def _laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers, 4-D, in another order in memory."""
    if layout == "channels_last":
        return tensor.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return tensor.transpose(0, 3).contiguous().transpose(0, 3)
    if layout == "strided":
        base = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
        base[..., ::2] = tensor
        return base[..., ::2]
    if layout == "offset":
        base = torch.zeros(tensor.numel() + 3, dtype=tensor.dtype)
        base[3:] = tensor.flatten()
        return base[3:].view(tensor.shape)
    return tensor.contiguous()


layouts = st.sampled_from(["plain", "channels_last", "transposed", "strided", "offset"])


@quick
@given(cases, backends, st.sampled_from(DTYPES), layouts, layouts, seeds)
def test_layout_does_not_change_the_result(
    case: Case, backend: str, dtype: torch.dtype, layout: str, grad_layout: str, seed: int
) -> None:
    """Stochastic noise too hangs on the place in the tensor, not on the place in memory."""
    ends = []
    for each, grad_each in (("plain", "plain"), (layout, grad_layout)):
        start = gradient(torch.empty(6, 4, 3, 5, dtype=dtype), seed)
        param = nn.Parameter(_laid_out(start, each))
        strides = param.stride()
        optimizer = case.make([param], lr=0.02, backend=backend)
        param.grad = _laid_out(gradient(start, seed + 1), grad_each)
        optimizer.step()
        assert param.stride() == strides
        ends.append(param.detach().double())
    if dtype in (torch.float32, torch.float64):
        assert_close([ends[1]], [ends[0]], dtype)
    else:  # a sum in another order may flip the rounding of a rare entry
        assert float((ends[0] != ends[1]).double().mean()) < 0.02
        assert bool(((ends[0] - ends[1]).abs() <= ULP[dtype] * 1.01 * ends[0].abs()).all())


@quick
@given(cases, backends, st.sampled_from(DTYPES), seeds)
def test_expanded_gradients_are_taken(
    case: Case, backend: str, dtype: torch.dtype, seed: int
) -> None:
    ends = []
    for expand in (True, False):
        param = nn.Parameter(gradient(torch.empty(4, 3, dtype=dtype), seed))
        grad = torch.full((1, 3), 0.5, dtype=dtype).expand(4, 3)
        param.grad = grad if expand else grad.contiguous()
        case.make([param], backend=backend).step()
        assert (grad == 0.5).all()
        ends.append(param)
    assert_close([ends[0]], [ends[1]], dtype)


@quick
@given(cases, backends, st.sampled_from(DTYPES))
def test_scalar_and_empty_tensors(case: Case, backend: str, dtype: torch.dtype) -> None:
    params = [
        nn.Parameter(torch.tensor(2.0, dtype=dtype)),
        nn.Parameter(torch.tensor([-2.0], dtype=dtype)),
        nn.Parameter(torch.empty(0, 3, dtype=dtype)),
        nn.Parameter(torch.empty(0, 6, 3, 3, dtype=dtype)),
        nn.Parameter(torch.ones(6, 4, dtype=dtype)),
    ]
    if "split_sizes" in case.options:
        del params[3]  # which has no rows to cut
    optimizer = case.make(params, lr=0.0625, backend=backend)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert all(torch.isfinite(param).all() for param in params)
    assert float(params[0].detach()) != 2.0 and params[2].shape == (0, 3)
    assert float(optimizer.state[params[2]]["skipped"]) == 0


# --- groups -------------------------------------------------------------------------------

tensors_in_group = st.lists(
    st.tuples(st.sampled_from(DTYPES), shapes, st.sampled_from([0.0, 1e-3, 1.0])),
    min_size=1,
    max_size=4,
)


@quick
# A structure may have no gradient at all.
@pytest.mark.filterwarnings("ignore:No weight of this optimizer")
@given(
    classes,
    backends,
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 0.1]), tensors_in_group), min_size=1, max_size=3
    ),
    st.sets(st.integers(0, 11)),
    seeds,
)
def test_any_grouping_is_each_tensor_alone(
    build: type, backend: str, structure: list, without_grad: set[int], seed: int
) -> None:
    """Groups and neighbours change nothing: each tensor goes its own way at its group's rate."""
    groups, alone, rates = [], [], []
    for lr, members in structure:
        made = [
            gradient(torch.empty(shape, dtype=dtype), seed + len(alone) + i, scale)
            for i, (dtype, shape, scale) in enumerate(members)
        ]
        groups.append({"params": [nn.Parameter(m.clone()) for m in made], "lr": lr})
        alone += [nn.Parameter(m.clone()) for m in made]
        rates += [lr] * len(made)
    optimizer = build(groups, backend=backend, rounding="nearest")
    together = [param for group in groups for param in group["params"]]
    singles = [
        build([param], lr=lr, backend=backend, rounding="nearest")
        for param, lr in zip(alone, rates, strict=True)
    ]
    before = snapshot(together)
    for number in (1, 2):
        for index, (one, other) in enumerate(zip(together, alone, strict=True)):
            has = index not in without_grad
            one.grad = gradient(one, seed + 100 * number + index) if has else None
            other.grad = one.grad.clone() if has else None
        optimizer.step()
        for single in singles:
            single.step()
    for index, (one, other) in enumerate(zip(together, alone, strict=True)):
        assert_close([one], [other], one.dtype) if one.numel() else None
        if index in without_grad or rates[index] == 0.0:
            assert same_bits(one, before[index])
