"""Stacks of equal shapes step as the loop does; a CPU plays the accelerator here."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_relopt import create_optimizer
from hf_relopt.backends import foreach, loop, stacks
from tests.batches import SHAPES, batch_of
from tests.tensors import same_bits, set_gradients


@pytest.mark.parametrize("limit", [1, 70, 10**6])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_row", [(), (0, 1, 4)], ids=["tensors", "rows"])
def test_a_stack_steps_as_the_loop_does(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    noisy: bool,
    limit: int,
    by_row: tuple[int, ...],
) -> None:
    monkeypatch.setattr(stacks, "LARGEST", limit)
    one, other = (batch_of(dtype, SHAPES, noisy, by_row) for _ in "ab")
    before = [weight.clone() for weight in one.weights()]
    loop.update(*one.given())
    stacks.update(*other.given())
    for start, weight, twin in zip(before, one.weights(), other.weights(), strict=True):
        assert same_bits(weight, twin)
        assert same_bits(start, weight) == (start is before[2])


def test_what_lies_one_after_the_other_is_joined_without_a_copy() -> None:
    room = torch.arange(60.0).view(5, 4, 3)
    halves = [room[:2], room[2:3], room[3:]]
    assert stacks.joined(halves).data_ptr() == room.data_ptr()
    turned = [each.mT for each in halves]
    every_other = [room[0:1], room[2:3], room[4:5]]
    for tensors in (halves, turned, every_other, [room[1:2]]):
        found = stacks.joined(tensors)
        assert torch.equal(found, torch.cat(tensors))
        assert found.data_ptr() == tensors[0].data_ptr()
    apart = [
        halves[::-1],
        [room[:2], room[3:]],
        [room[:2], room[:2]],
        [room[:2], room[2:3].clone()],
        [room[:1], room[1:2].mT.contiguous().mT],
        [room[:0], room[:0]],
    ]
    for tensors in apart:
        found = stacks.joined(tensors)
        assert torch.equal(found, torch.cat(tensors))
        assert not found.numel() or found.data_ptr() not in {t.data_ptr() for t in tensors}


def test_matrices_that_lie_one_after_the_other_are_stacked_without_a_copy() -> None:
    room = torch.arange(60.0).view(5, 4, 3)
    for matrices in (list(room), [each.mT for each in room], list(room[::2]), [room[1]]):
        found = stacks.stacked(matrices)
        assert torch.equal(found, torch.stack(matrices))
        assert found.data_ptr() == matrices[0].data_ptr()
    for matrices in ([room[0], room[2], room[3]], [room[1], room[0]], [room[0], room[1].clone()]):
        found = stacks.stacked(matrices)
        assert torch.equal(found, torch.stack(matrices))
        assert found.data_ptr() != matrices[0].data_ptr()


def test_what_is_alike_is_put_together_up_to_a_limit() -> None:
    found = list(stacks.stacks(["a", "b", "a", "a", "b"], [4, 9, 4, 4, 9], 8))
    assert found == [[0, 2], [3], [1], [4]]
    assert list(stacks.stacks(["none"] * 2, [0, 0], 8)) == [[0, 1]]


@pytest.mark.parametrize(
    "optim", ["fromage", "madam", "fromage_momentum", "fromage_spectral", "muonh"]
)
def test_a_model_trains_alike_with_stacks(monkeypatch: pytest.MonkeyPatch, optim: str) -> None:
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=3, n_head=2)
    model = GPT2LMHeadModel(config)
    twin = deepcopy(model)
    for each, stacked in ((model, False), (twin, True)):
        optimizer = create_optimizer(each, optim, 0.02)
        monkeypatch.setattr(stacks, "are_worthwhile", lambda device, yes=stacked: yes)
        if stacked:
            monkeypatch.setattr(foreach, "small_size", lambda device: 500)
        params = [param for param in each.parameters() if isinstance(param, nn.Parameter)]
        for number in range(3):
            set_gradients(params, number)
            optimizer.step()
    for param, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-7)
