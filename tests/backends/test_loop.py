"""The reference in pieces: their size and the layout of the tensors change nothing."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends import loop
from tests.batches import SHAPES, batch_of
from tests.tensors import same_bits


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", [1, 7])
def test_pieces_step_as_whole_tensors_do(
    monkeypatch: pytest.MonkeyPatch, size: int, noisy: bool
) -> None:
    whole, cut = (batch_of(torch.bfloat16, SHAPES, noisy) for _ in "ab")
    loop.apply(whole)
    monkeypatch.setattr(loop, "piece_size", lambda device: size)
    loop.apply(cut)
    assert all(map(same_bits, whole.params, cut.params))


@pytest.mark.parametrize("noisy", [False, True])
def test_a_layout_changes_nothing(noisy: bool) -> None:
    plain, turned = (batch_of(torch.bfloat16, SHAPES, noisy) for _ in "ab")
    for index, param in enumerate(turned.params):
        # The same values, the last dimension outermost in memory.
        turned.params[index] = param.movedim(-1, 0).contiguous().movedim(0, -1)
    assert not turned.params[0].is_contiguous()
    loop.apply(plain)
    loop.apply(turned)
    assert all(map(same_bits, plain.params, turned.params))


def test_one_tensor_is_stepped_without_the_others() -> None:
    all_of_them, one = (batch_of(torch.float32, SHAPES, noisy=False) for _ in "ab")
    before = [param.clone() for param in one.params]
    loop.apply(all_of_them)
    loop.apply_one(one, 1)
    for index, (start, param) in enumerate(zip(before, one.params, strict=True)):
        assert same_bits(param, all_of_them.params[1] if index == 1 else start)
