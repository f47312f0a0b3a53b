"""A checkpoint of the other launch mode is known as such, and its state is given to this one.

Two real ranks resume across modes in tests/distributed/trainer_fsdp2.py.
"""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

from hf_relopt import ConfigError, create_optimizer
from hf_relopt.hf.across_modes import (
    is_of_fsdp,
    load_across,
    put_weights,
    state_names,
    weights_to_carry,
)
from tests.hf.tiny import gpt2, same, weights


def stepped(optim="madam"):
    model = gpt2()
    optimizer = create_optimizer(model, optim, 0.01)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    return model, optimizer


def by_name(optimizer):
    """The state dict as FSDP2's full state dicts have it: weights by name."""
    saved = copy.deepcopy(optimizer.state_dict())
    names = {
        number: name
        for group in saved["param_groups"]
        for number, name in zip(group["params"], group["param_names"], strict=True)
    }
    for group in saved["param_groups"]:
        group["params"] = [names[number] for number in group["params"]]
    return {**saved, "state": {names[number]: state for number, state in saved["state"].items()}}


def test_what_a_checkpoint_was_saved_under_is_told_by_its_files(checkpoint, tmp_path):
    assert is_of_fsdp(tmp_path) is None
    assert state_names(tmp_path) == set()
    assert is_of_fsdp(checkpoint) is True  # beside an optimizer.pt
    assert state_names(checkpoint) == {"step", "skipped", "anchor_norm", "second_moment"}
    torch.save({"state": {"w": {"momentum": 1}}}, tmp_path / "optimizer.bin")
    assert (is_of_fsdp(tmp_path), state_names(tmp_path)) == (True, {"momentum"})


def test_a_plain_checkpoint_is_none_of_fsdp(run):
    assert is_of_fsdp(run / "checkpoint-4") is False
    assert state_names(run / "checkpoint-4") == set()


def test_weights_are_carried_only_from_the_other_mode(run, tmp_path):
    folder = run / "checkpoint-4"
    assert weights_to_carry(folder, fsdp=False) is None
    held = load_file(folder / "model.safetensors")
    assert same(held, weights_to_carry(folder, fsdp=True))
    torch.save(held, tmp_path / "pytorch_model_fsdp.bin")
    assert same(held, weights_to_carry(tmp_path, fsdp=False))
    assert weights_to_carry(tmp_path, fsdp=True) is None
    model = gpt2(seed=3)
    put_weights(model, held)
    assert same(weights(model), held)


@pytest.mark.parametrize("optim", ["madam", "fromage_spectral"])
def test_state_by_name_is_taken_for_the_same_state_by_number(optim, tmp_path):
    model, optimizer = stepped(optim)
    torch.save(by_name(optimizer), tmp_path / "optimizer.bin")
    after = create_optimizer(model, optim, 0.01)
    load_across(model, after, tmp_path, fsdp=False)
    found = by_name(after)["state"]
    for name, state in by_name(optimizer)["state"].items():
        assert state.keys() == found[name].keys()
        assert all(torch.equal(state[key], found[name][key]) for key in state), name


def test_a_state_that_does_not_name_its_weights_is_refused(tmp_path):
    model, optimizer = stepped()
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["param_names"]
    torch.save(saved, tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"does not name its weights.*discard_optimizer_state"):
        load_across(model, optimizer, tmp_path, fsdp=True)
