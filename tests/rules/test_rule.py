"""What both rules do: zero-start tensors, and gradients of many sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from tests.cases import DEFAULTS, DTYPES, MIN_SCALE, Case
from tests.oracles import fromage as fromage_oracle
from tests.oracles import madam as madam_oracle
from tests.rules.problems import SHAPES, Build, assert_same_path, uniform_weights
from tests.tensors import gradient, norm, to_numpy


def _name(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


each_default = pytest.mark.parametrize("case", DEFAULTS, ids=_name)
# a compilation costs a second: the compiled backend meets two dtypes
BACKEND_DTYPES = [
    *[("foreach", dtype) for dtype in DTYPES],
    *[("compiled", dtype) for dtype in (torch.float32, torch.bfloat16)],
]
each_backend_dtype = pytest.mark.parametrize(("backend", "dtype"), BACKEND_DTYPES, ids=_name)
each_backend = pytest.mark.parametrize("backend", ["foreach", "compiled"])


@each_backend_dtype
@each_default
def test_zero_start_tensors_move_and_cross_zero(case: Case, backend: str, dtype) -> None:  # type: ignore[no-untyped-def]
    param = nn.Parameter(torch.zeros(4, 3, dtype=dtype))
    optimizer = case.make([param], lr=0.125, backend=backend)
    param.grad = torch.ones_like(param)
    optimizer.step()
    first = param.detach().clone()
    assert (first < 0).all()
    assert norm(first) == pytest.approx(0.125 * MIN_SCALE * 12**0.5, rel=0.02)
    for _ in range(6):
        param.grad = -torch.ones_like(param)
        optimizer.step()
    assert (param > 0).all()
    assert float(optimizer.state[param]["anchor_norm"]) == 0


@each_backend
@pytest.mark.parametrize("build", [Fromage, Madam])
def test_random_gradients_of_many_sizes(build: Build, backend: str) -> None:
    """Independent gradients whose scale wanders over 20 decades: both rules ignore the scale."""
    params = uniform_weights()
    optimizer = build(params, lr=0.01, backend=backend)
    first = [to_numpy(p).copy() for p in params]
    grads: list[list[np.ndarray]] = [[] for _ in params]
    ends: list[list[np.ndarray]] = [[] for _ in params]
    for number in range(200):
        for index, param in enumerate(params):
            scale = 10.0 ** (10 * np.sin(number / 30)) if build is Fromage else 10.0**-index
            param.grad = gradient(param, 100 * number + index, scale)
            grads[index].append(to_numpy(param.grad).copy())
        optimizer.step()
        for index, param in enumerate(params):
            ends[index].append(to_numpy(param).copy())
    paper = fromage_oracle.paper if build is Fromage else madam_oracle.paper
    for index in range(len(SHAPES)):
        assert_same_path(ends[index], paper(first[index], grads[index], 0.01).weights)
