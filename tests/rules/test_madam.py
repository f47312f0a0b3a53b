"""Madam against its float64 oracle; signs, outliers, and exploding gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import Madam
from tests.cases import DTYPES, Case
from tests.oracles import madam as madam_oracle
from tests.rules.problems import DECAY, SHAPES, assert_same_path, real_problem
from tests.tensors import gradient, norm, run, weights


@pytest.mark.parametrize(("backend", "p_scale"), [("foreach", 2.0), ("compiled", 3.0)])
def test_madam_is_the_papers_rule(backend: str, p_scale: float) -> None:
    first, grads, ends = real_problem(Madam, backend, DECAY, p_scale=p_scale)
    for index in range(len(SHAPES)):
        path = madam_oracle.paper(first[index], grads[index], DECAY, p_scale=p_scale)
        bound = p_scale * path.anchor_norm / np.sqrt(path.last.size)
        assert index == 2 or np.isclose(np.abs(path.weights), bound).any(), "the clip never acts"
        assert_same_path(ends[index], path.weights)


def _name(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


# a compilation costs a second: the compiled backend meets two dtypes
BACKEND_DTYPES = [
    *[("foreach", dtype) for dtype in DTYPES],
    *[("compiled", dtype) for dtype in (torch.float32, torch.bfloat16)],
]


each_backend_dtype = pytest.mark.parametrize(("backend", "dtype"), BACKEND_DTYPES, ids=_name)


each_backend = pytest.mark.parametrize("backend", ["foreach", "compiled"])


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=_name)
def test_madam_keeps_outliers(dtype: torch.dtype, backend: str) -> None:
    """An entry of some 50 RMS stays to the bit without a push, may shrink, and never grows."""
    weight = torch.full((4096,), 0.01)
    weight[:3] = 1.0
    weight[2] = -1.0
    param = nn.Parameter(weight.to(dtype))
    rms = norm(param) / 64
    assert 1.0 / rms > 30
    optimizer = Madam([param], lr=0.125, backend=backend)
    for number in range(1, 4):
        grad = gradient(param, number).abs()
        grad[0], grad[1], grad[2] = 0.0, -1.0, 1.0  # no push, a push outwards, outwards below 0
        param.grad = grad
        optimizer.step()
        assert param[:3].tolist() == [1.0, 1.0, -1.0]
    param.grad = torch.zeros_like(param)
    param.grad[0], param.grad[2] = 1.0, -1.0
    optimizer.step()
    assert 0 < float(param.detach()[0]) < 1.0 and -1.0 < float(param.detach()[2]) < 0


@each_backend_dtype
def test_madam_never_changes_a_sign(dtype: torch.dtype, backend: str) -> None:
    params = weights(dtype)[:2]
    signs = [param.detach().sign() for param in params]
    # Each option is another program to compile.
    options = {} if backend == "compiled" else {"beta": 0.5}
    optimizer = Madam(params, lr=0.5, backend=backend, **options)
    for number in range(1, 20):
        run(optimizer, params, (number,))
        for param, sign in zip(params, signs, strict=True):
            assert torch.isfinite(param).all()
            # an entry may vanish below the smallest number of its dtype, never cross zero
            assert (param.detach() * sign >= 0).all()
            assert (param.detach()[sign == 0] == 0).all()


@each_backend_dtype
@pytest.mark.parametrize("size", [1e15, 1e19, 1e20, 1e30])
def test_one_exploding_gradient_leaves_madam_able_to_learn(
    size: float, dtype: torch.dtype, backend: str
) -> None:
    """A second moment of Inf would freeze its entry for ever without a word."""
    param = nn.Parameter(torch.ones(4, 3, dtype=dtype))
    optimizer = Madam([param], lr=0.125, backend=backend)
    param.grad = torch.full_like(param, min(size, torch.finfo(dtype).max))
    optimizer.step()
    assert torch.isfinite(param).all()
    assert torch.isfinite(optimizer.state[param]["second_moment"]).all()
    took_part = float(optimizer.state[param]["step"]) == 1
    assert took_part or float(optimizer.state[param]["skipped"]) == 1, "neither done nor counted"
