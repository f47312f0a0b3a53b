"""The direction "rms": steps of rows by the usual size of their gradients, not of this step's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from tests.tensors import gradient, norm, same_bits, state_of


def table(rows: int = 4, columns: int = 8, **options: float) -> tuple[nn.Parameter, Fromage]:
    param = nn.Parameter(gradient(torch.empty(rows, columns), 1, 0.1))
    return param, Fromage([param], lr=0.01, direction="rms", scale="row", **options)


def test_the_first_step_of_a_row_is_a_whole_one() -> None:
    param, optimizer = table(lr_factor=2.0)
    before = param.detach().clone()
    param.grad = gradient(param.detach(), 2) * torch.tensor([1e-20, 1.0, 1e3, 1e20]).unsqueeze(1)
    optimizer.step()
    moved = (param.detach() - before).norm(dim=1) / before.norm(dim=1)
    assert torch.allclose(moved, torch.full((4,), 0.02), rtol=1e-5)


def test_noise_below_the_usual_size_moves_less_than_a_step() -> None:
    param, optimizer = table()
    for _ in range(50):
        param.grad = torch.ones_like(param)
        optimizer.step()
    before = param.detach().clone()
    param.grad = torch.full_like(param, 0.01)
    optimizer.step()
    moved = (param.detach() - before).norm(dim=1) / (
        0.01 * state_of(optimizer, param)["anchor_norm"]
    )
    assert torch.allclose(moved, torch.full((4,), 0.01), rtol=0.02)


def test_a_row_without_a_gradient_rests_and_remembers() -> None:
    """What is rare is not forgotten meanwhile: its next step is of usual length."""
    param, optimizer = table()
    for step in range(200):
        param.grad = torch.ones_like(param)
        if step % 100:
            param.grad[0] = 0.0
        before = param.detach().clone()
        optimizer.step()
        if step % 100:
            assert same_bits(param.detach()[0], before[0])
    state = state_of(optimizer, param)
    assert state["grad_count"].tolist() == [2.0, 200.0, 200.0, 200.0]
    assert state["grad_rms"][0] == pytest.approx((1 - 0.99**2) ** 0.5, rel=1e-5)
    before = param.detach().clone()
    param.grad = torch.ones_like(param)
    optimizer.step()
    moved = (param.detach() - before).norm(dim=1) / (0.01 * state["anchor_norm"])
    assert torch.allclose(moved, torch.ones(4), rtol=1e-4)


def test_one_gradient_forever_ends_at_the_bound() -> None:
    param, optimizer = table(p_bound=1.5)
    first = norm(param)
    for _ in range(1000):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert norm(param) == pytest.approx(1.5 * first, rel=1e-5)


def test_steps_do_not_grow_with_the_weights() -> None:
    """As AdamW's: relative to the first norm, so that successive steps add up and not multiply."""
    param, optimizer = table(p_bound=10.0)
    lengths = []
    for _ in range(100):
        before = param.detach().clone()
        param.grad = torch.ones_like(param)
        optimizer.step()
        lengths.append(norm(param.detach() - before))
    assert lengths == pytest.approx([lengths[0]] * 100, rel=1e-4)


@pytest.mark.parametrize("scale", ["tensor", "row"])
def test_the_size_of_gradients_does_not_matter(scale: str) -> None:
    ends = []
    for factor in (1.0, 2.0**-90, 2.0**90):
        param = nn.Parameter(gradient(torch.empty(4, 8), 1, 0.1))
        optimizer = Fromage([param], lr=0.01, direction="rms", scale=scale)
        for step in range(5):
            param.grad = gradient(torch.empty(4, 8), step) * factor
            optimizer.step()
        ends.append(param.detach())
    assert all(torch.allclose(end, ends[0], rtol=1e-5) for end in ends)
