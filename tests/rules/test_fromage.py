"""Fromage against its float64 oracle and against optax; its bounds, and sizes beyond float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from tests.oracles import fromage as fromage_oracle
from tests.rules.problems import DECAY, SHAPES, assert_same_path, real_problem, uniform_weights
from tests.tensors import gradient, norm, to_numpy, weights


@pytest.mark.parametrize(
    ("backend", "p_bound"),
    [("foreach", None), ("foreach", 1.5), ("compiled", 1.0)],
)
def test_fromage_is_the_papers_rule(backend: str, p_bound: float | None) -> None:
    first, grads, ends = real_problem(Fromage, backend, DECAY, p_bound=p_bound)
    for index in range(len(SHAPES)):
        path = fromage_oracle.paper(first[index], grads[index], DECAY, p_bound=p_bound)
        assert_same_path(ends[index], path.weights)


def test_fromage_equals_optax() -> None:
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    param = uniform_weights()[0]
    theirs = jax.numpy.asarray(param.detach().numpy())
    ours, rule = Fromage([param], lr=0.02, min_scale=0.0), optax.fromage(0.02)
    memory, update = rule.init(theirs), jax.jit(rule.update)
    for number in range(200):
        param.grad = gradient(param, number)
        ours.step()
        change, memory = update(jax.numpy.asarray(param.grad.numpy()), memory, theirs)
        theirs = optax.apply_updates(theirs, change)
    assert_same_path([to_numpy(param)], [np.asarray(theirs, dtype=np.float64)])


def test_fromage_keeps_norms_under_orthogonal_gradients() -> None:
    """The factor 1/sqrt(1 + lr^2) is exact where gradients are orthogonal to the weight."""
    param = nn.Parameter(torch.randn(40, 30))
    first = norm(param)
    optimizer = Fromage([param], lr=0.05)
    for number in range(300):
        grad = gradient(param, number)
        unit = param.detach() / param.detach().norm()
        param.grad = grad - unit * (unit * grad).sum()
        optimizer.step()
    assert norm(param) == pytest.approx(first, rel=1e-5)


BOUNDS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize("backend", ["foreach", "compiled"])
@pytest.mark.parametrize("grad_size", [1e-40, 1e-30, 1e20, 1e38])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e37])
def test_squares_beyond_float32_are_summed(size: float, grad_size: float, backend: str) -> None:
    """Norms of 1e20 and 1e-30 are fine numbers whose squares are none."""
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0])
    param = nn.Parameter(torch.full((4,), size))
    optimizer = Fromage([param], lr=0.5, p_bound=1.0, backend=backend)
    param.grad = signs * grad_size
    optimizer.step()
    expected = (1 - 0.5 * signs) / 1.25**0.5
    expected = expected * (2.0 / expected.norm()).clamp(max=1.0)
    assert torch.allclose(param.detach() / size, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("backend", "dtype", "bound"),
    [
        *[("foreach", dtype, p) for dtype in (torch.float32, torch.bfloat16) for p in BOUNDS],
        *[("compiled", dtype, 1.0) for dtype in (torch.float32, torch.bfloat16)],
    ],
    ids=str,
)
def test_fromage_bound_is_never_passed(backend: str, dtype: torch.dtype, bound: float) -> None:
    rel = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    params = weights(dtype)
    limits = [bound * norm(p) for p in params]
    optimizer = Fromage(params, lr=0.25, p_bound=bound, backend=backend)
    for number in range(1, 8):
        for param in params:
            param.grad = (-param + 0.01 * gradient(param, number)).detach()
        optimizer.step()
        for param, limit in zip(params[:2], limits[:2], strict=True):
            assert norm(param) <= limit * (1 + rel)
            assert norm(param) >= limit * (1 - rel) or bound > 1
    assert norm(params[2]) > 0, "a zero-start tensor has no bound"
