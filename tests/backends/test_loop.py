"""The reference in pieces: their size and the layout of the tensors change nothing."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends import loop
from tests.batches import SHAPES, batch_of
from tests.tensors import same_bits

each_kind = pytest.mark.parametrize("by_row", [(), (0, 3)], ids=["tensors", "rows"])


@each_kind
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", [1, 7])
def test_pieces_step_as_whole_parts_do(
    monkeypatch: pytest.MonkeyPatch, size: int, noisy: bool, by_row: tuple[int, ...]
) -> None:
    whole, cut = (batch_of(torch.bfloat16, SHAPES, noisy, by_row) for _ in "ab")
    loop.update(*whole.given())
    monkeypatch.setattr(loop, "piece_size", lambda device: size)
    loop.update(*cut.given())
    assert all(map(same_bits, whole.weights(), cut.weights()))


@each_kind
@pytest.mark.parametrize("noisy", [False, True])
def test_a_layout_changes_nothing(noisy: bool, by_row: tuple[int, ...]) -> None:
    plain, turned = (batch_of(torch.bfloat16, SHAPES, noisy, by_row) for _ in "ab")
    for place, part in enumerate(turned.parts):
        # The same values, the last dimension outermost in memory.
        weight = part.weight.movedim(-1, 0).contiguous().movedim(0, -1)
        turned.parts[place] = part._replace(weight=weight)
    assert not turned.parts[0].weight.is_contiguous()
    loop.update(*plain.given())
    loop.update(*turned.given())
    assert all(map(same_bits, plain.weights(), turned.weights()))


def test_one_part_is_stepped_without_the_others() -> None:
    all_of_them, one = (batch_of(torch.float32, SHAPES, noisy=False) for _ in "ab")
    before = [weight.clone() for weight in one.weights()]
    loop.update(*all_of_them.given())
    loop.update_one(one.parts[1], one.equation, one.decision)
    for place, (start, weight) in enumerate(zip(before, one.weights(), strict=True)):
        assert same_bits(weight, all_of_them.weights()[1] if place == 1 else start)
