"""Codes in files: bytes under the weight's name, and what does not fit them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import FormatError
from hf_relopt.hf.compression import compress, decompress
from hf_relopt.hf.lns_files import flattened
from hf_relopt.lns.packing import SCALES


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(13, 7), nn.Linear(7, 5))


def test_a_plain_module_takes_bytes_back():
    model = compress(small(), "lns10")
    state = flattened(model.state_dict())
    assert state["0.weight"].dim() == 1 and state["0.weight"].dtype is torch.uint8
    assert state["0.weight" + SCALES].shape == (7,)
    assert all(type(value) is torch.Tensor for value in state.values())
    other = compress(nn.Sequential(nn.Linear(13, 7), nn.Linear(7, 5)), "lns10")
    other.load_state_dict(state)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    inside = nn.Sequential(other)  # as a part of another
    inside.load_state_dict({f"0.{name}": value for name, value in state.items()})


def test_bytes_do_not_go_into_numbers():
    state = flattened(compress(small()).state_dict())
    model = decompress(compress(small()))
    with pytest.raises(FormatError, match=r"0\.weight in codes, but the model has numbers"):
        model.load_state_dict(state)
