"""Weights held in a ball: every way of doing it, against the rule."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_relopt.distance import ball
from hf_relopt.distance.ball import Ball, held_as, local_squares
from hf_relopt.distance.kept import Copies, RenamedWeights
from hf_relopt.distance.origin import squares_of
from hf_relopt.distance.weights import HeldWeights
from hf_relopt.rules.ball import kept_share, nearest
from tests.distance.nets import gpt2, moved

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def params_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.named_parameters() if p.count_nonzero()}


def two(dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Initial weights, and weights of which some are inside of the ball of .1."""
    before = gpt2().to(dtype)
    after = moved(before, size=3e-3)
    with torch.no_grad():
        after.transformer.h[0].attn.c_attn.weight.mul_(1.3)
    return params_of(before), {n: dict(after.named_parameters())[n] for n in params_of(before)}


def by_rule(before: torch.Tensor, after: torch.Tensor, rho: float) -> torch.Tensor:
    norms = [torch.linalg.vector_norm(x.double()) for x in (after.double() - before, before)]
    return nearest(after, before, kept_share(*norms, rho))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", ["pieces", "together", "read"])
def test_every_way_is_the_rule(dtype, way, monkeypatch):
    before, after = two(dtype)
    if way == "pieces":
        monkeypatch.setattr(ball, "CACHED", 97)  # rows are cut through
    initial = Copies(before, None, low=False)
    held = [held_as(name, param) for name, param in after.items()]
    norms = [square.sqrt() for square in squares_of(held, initial)]
    source = RenamedWeights(initial, {n: n for n in before}) if way == "read" else initial
    pull = Ball(held, source, norms, 0.1)
    if way == "together":
        # As on an accelerator.
        pull._portions, pull._singly = ball._portions(held, range(len(held))), []
    expected = {name: by_rule(before[name], after[name], 0.1).clone() for name in after}
    unmoved = [name for name in after if torch.equal(expected[name], after[name])]
    assert 0 < len(unmoved) < len(after)
    pull.pull()
    for name, param in after.items():
        close = {"rtol": 1e-6, "atol": 1e-7} if dtype is not torch.bfloat16 else {}
        torch.testing.assert_close(param.detach(), expected[name].detach(), **close)
    # Bit for bit what was inside.
    assert all(torch.equal(after[name], expected[name]) for name in unmoved)


def test_portions_hold_weights_of_one_dtype_and_all_of_them(monkeypatch):
    monkeypatch.setattr(ball, "PORTION", 100)
    tensors = [torch.zeros(n, dtype=d) for n, d in [(60, torch.float32), (30, torch.bfloat16)] * 3]
    held = [held_as(str(n), each) for n, each in enumerate(tensors)]
    found = ball._portions(held, range(6))
    assert sorted(place for portion in found for place in portion) == list(range(6))
    for portion in found:
        assert len({tensors[place].dtype for place in portion}) == 1
        assert sum(tensors[place].numel() for place in portion) <= 100 or len(portion) == 1


def test_squares_are_those_of_float64_and_do_not_overflow():
    tensors = [torch.full((300_000,), 1e20), torch.randn(5, 7), torch.zeros(0), torch.ones(())]
    found = local_squares(tensors)
    for each, square in zip(tensors, found, strict=True):
        assert float(square) == pytest.approx(float(each.double().square().sum()), rel=1e-12)


def test_a_weight_that_is_no_number_is_left_to_its_owner():
    weight = torch.ones(4, 4)
    initial = Copies({"w": weight}, None, low=False)
    held = [held_as("w", weight)]
    pull = Ball(held, initial, [s.sqrt() for s in squares_of(held, initial)], 0.1)
    weight[0, 0] = torch.nan
    before = weight.clone()
    pull.pull()
    assert torch.equal(weight.nan_to_num(7), before.nan_to_num(7))


def test_pulling_again_changes_no_more_than_rounding():
    before, after = two(torch.float32)
    held = [held_as(name, param) for name, param in after.items()]
    initial = Copies(before, None, low=False)
    pull = Ball(held, initial, [s.sqrt() for s in squares_of(held, initial)], 0.01)
    pull.pull()
    once = copy.deepcopy({name: param.detach() for name, param in after.items()})
    for _ in range(20):
        pull.pull()
    for name, param in after.items():
        torch.testing.assert_close(param.detach(), once[name], rtol=1e-6, atol=1e-8)


def test_weights_in_memory_of_others_are_read_too():
    """HeldWeights that are no copies of ours lie anywhere and are read in pieces."""
    before, after = two(torch.float32)
    held = [held_as(name, param) for name, param in after.items()]
    other = HeldWeights(before, "others")
    Ball(held, other, [s.sqrt() for s in squares_of(held, other)], 0.05).pull()
    for name, param in after.items():
        size = torch.linalg.vector_norm(before[name].detach())
        assert torch.linalg.vector_norm((param - before[name]).detach()) <= 0.05 * size * (1 + 1e-5)
