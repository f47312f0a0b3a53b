"""Parts are compared alike whatever is laid end to end, and whatever is taken in pieces."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends.part import Part, View
from hf_relopt.step import change

SHAPES = [(1, (7, 5)), (1, (300,)), (3, (3, 4, 2)), (1, (1,)), (1, (64, 3))]


def parts(dtype):
    torch.manual_seed(0)
    found, first = [], 0
    for count, shape in SHAPES:
        view = View(first, count, shape, 0, (0,) * len(shape))
        source = torch.randn(shape)
        source[0] = 0.0
        found.append(Part(view, torch.randn(shape).to(dtype), source))
        first += count
    return found, first


def step(some):
    for part in some:
        part.weight.add_(0.01 * part.source.to(part.weight.dtype))


@pytest.mark.parametrize("piece", [2**16, 50, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_and_counts_are_those_of_the_weights(piece, dtype, monkeypatch):
    monkeypatch.setattr(change, "_PIECE", piece)
    some, slices = parts(dtype)
    move = torch.arange(slices) % 2 == 0
    old = [part.weight.clone().double() for part in some]
    before = change.Before(some)
    step(some)
    squares, counts = change.changes(some, before, move, torch.ones(slices), None)
    row = 0
    for place, (part, was) in enumerate(zip(some, old, strict=True)):
        now, view = part.weight.double(), part.view
        own = [(part.source, was, now)]
        if view.count > 1:
            own = list(zip(part.source, was, now, strict=True))
        stuck = followed = 0
        for source, w, n in own:
            expected = [float(each.square().sum()) for each in (n - w, w, n)]
            assert squares[row].tolist() == pytest.approx(expected, rel=1e-5)
            if move[row]:
                followed += int((source != 0).sum())
                stuck += int(((source != 0) & (n == w)).sum())
            row += 1
        changed = int((now != was).sum())
        assert counts[place].tolist() == [changed, 0, followed, stuck]
    assert row == slices


@pytest.mark.parametrize("piece", [2**16, 3])
def test_what_is_held_or_zero_is_not_rounded_away(piece, monkeypatch):
    monkeypatch.setattr(change, "_PIECE", piece)
    weight = torch.tensor([2.0, 2.0, 0.0, 1.0, 1.0, 0.5])
    part = Part(View(0, 1, (6,), 0, (1,)), weight, torch.ones(6))
    for anchor, followed, stuck in ((1.0, 3, 2), (0.0, 4, 3)):
        before = change.Before([part])
        weight[0] = 1.5  # from the bound inwards; the other one stays there
        weight[5] += 0.1
        given = torch.tensor([True]), torch.tensor([anchor]), torch.tensor([2.0])
        _, counts = change.changes([part], before, *given)
        assert counts.tolist() == [[2.0, 1.0, followed, stuck]]
        weight[0] = 2.0


def test_squares_beyond_float32_are_none():
    weight = torch.full((2**17,), 1e30)
    part = Part(View(0, 1, (2**17,), 0, (1,)), weight, torch.ones(2**17))
    before = change.Before([part])
    weight.mul_(2.0)
    squares, _ = change.changes([part], before, torch.tensor([True]), torch.ones(1), None)
    assert squares.sqrt().tolist()[0] == pytest.approx([1e30 * 2**8.5] * 2 + [2e30 * 2**8.5])
