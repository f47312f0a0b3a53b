"""Rows that are stepped with one look at each end at the bits of those that are looked at twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from hf_relopt.backends.backend import BACKENDS
from hf_relopt.backends.part import OneLook
from hf_relopt.backends.triton import one_look, tiles
from hf_relopt.step.lineup import Slots
from tests.cases import HAS_TRITON
from tests.tensors import gradient, same_bits, state_of

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")

SHAPES = ((9, 5), (16, 32), (3, 4, 2))


def ends(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, *, one: bool
) -> tuple[list[torch.Tensor], list[bool]]:
    """Weights and states after four steps, and what each look said of itself."""
    said: list[bool] = []

    def step(look: Any) -> bool:
        said.append(one and one_look.step(look))
        return said[-1]

    monkeypatch.setitem(BACKENDS, "triton", replace(BACKENDS["triton"], step_in_one_look=step))
    params = [
        nn.Parameter(gradient(torch.empty(s), n, 0.1).to(dtype)) for n, s in enumerate(SHAPES)
    ]
    params[1].data = params[1].data.t().contiguous().t()  # columns lie one after the other
    params[0].data[2] = 0.0  # a placeholder, or a row that starts at zero
    optimizer = Fromage(params, lr=0.125, backend="triton", scale="row", **options)
    for number in range(1, 5):
        for place, param in enumerate(params):
            grad = gradient(param, 10 * number + place).to(dtype)
            grad[number % len(grad)] = 0.0
            if (number, place) == (3, 2):
                grad[0, 0, 0] = torch.nan
            param.grad = grad
        optimizer.step()
    kept = [t for p in params for t in state_of(optimizer, p).values()]
    return [*[param.detach() for param in params], *kept], said


@pytest.mark.parametrize(("options", "dtype"), [
    ({"direction": "rms", "p_bound": 1.0}, torch.float32),
    ({"direction": "rms", "p_bound": 1.0}, torch.bfloat16),
    ({"direction": "rms", "beta": 0.5}, torch.float64),
    ({"direction": "gradient", "bound": "sphere", "maximize": True}, torch.float32),
    ({"direction": "gradient", "p_bound": 4.0, "rounding": "nearest"}, torch.bfloat16),
], ids=str)  # fmt: skip
def test_one_look_is_as_good_as_two(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, said = ends(options, dtype, monkeypatch, one=True)
    two, _ = ends(options, dtype, monkeypatch, one=False)
    # The first step makes the anchors.
    assert said == [True] * 3
    assert all(map(same_bits, one, two))


def test_rows_beyond_a_tile_are_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 16)
    param = nn.Parameter(gradient(torch.empty(2, 20), 1))
    optimizer = Fromage([param], direction="rms", scale="row", backend="triton")
    param.grad = gradient(param, 2)
    optimizer.step()
    (bundle,) = Slots(optimizer.param_groups, optimizer.state).taking_part().directed
    before = param.detach().clone()
    looked = OneLook(bundle.parts(), bundle.equation, "cosine", lambda given: {}, {}, {})
    assert not one_look.step(looked) and same_bits(param, before)
    optimizer.step()
    assert not same_bits(param, before)
