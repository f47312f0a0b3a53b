"""Zero-start tensors, bounds, outliers, signs, exploding gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from tests.cases import BACKENDS, DEFAULTS, DTYPES, MIN_SCALE, Case
from tests.tensors import gradient, norm, run, weights


def _name(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


each_default = pytest.mark.parametrize("case", DEFAULTS, ids=_name)
# a compilation costs a second: the compiled backend meets two dtypes
BACKEND_DTYPES = [
    *[(backend, dtype) for backend in ("loop", "foreach") for dtype in DTYPES],
    *[("compiled", dtype) for dtype in (torch.float32, torch.bfloat16)],
]
each_backend_dtype = pytest.mark.parametrize(("backend", "dtype"), BACKEND_DTYPES, ids=_name)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


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


@each_backend
def test_fromage_bound_is_never_passed(backend: str) -> None:
    slack = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
    for dtype, rel in slack.items():
        for bound in (0.5, 1.0, 2.0):
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
    optimizer = Madam(params, lr=0.5, backend=backend, beta=0.5)
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
