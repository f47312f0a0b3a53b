"""Weights in memory: which tensors count, under which names, and how they are cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_relopt import compress
from hf_relopt.distance.weights import (
    common_names,
    network_order,
    of_module,
    of_state_dict,
    pieces_of,
)
from hf_relopt.errors import ConfigError
from tests.distance.nets import gpt2


def test_tied_weights_count_once_in_modules_and_state_dicts():
    model = gpt2()
    from_module, from_state = of_module(model), of_state_dict(model.state_dict())
    assert list(from_module.shapes) == list(from_state.shapes)
    assert "lm_head.weight" not in from_module.shapes
    assert from_state.others["lm_head.weight"] == "tied to transformer.wte.weight"


def test_weights_in_codes_of_one_shape_are_not_taken_for_tied():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model.append(model[0])
    found = of_module(compress(model))
    assert list(found.shapes) == ["0.weight", "1.weight"]
    assert found.aliases == {"2.weight": "0.weight"}


def test_buffers_and_integers_are_no_weights():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    weights = of_state_dict(net.state_dict())
    assert list(weights.shapes) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert weights.others == {
        "1.running_mean": "a buffer",
        "1.running_var": "a buffer",
        "1.num_batches_tracked": "stored as int64",
    }
    assert of_module(net).others["1.running_mean"] == "a buffer"


def test_what_is_stored_in_another_way_is_named():
    state = {
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.ones(2, dtype=torch.complex64),
        "block._extra_state": None,
        3: torch.ones(2),
    }
    weights = of_state_dict(state)
    assert list(weights.shapes) == ["3"]
    assert weights.others == {"sparse": "stored as sparse_coo", "complex": "stored as complex64"}


def test_wrappers_leave_the_names():
    model = gpt2()
    wrapped = nn.DataParallel(torch.compile(model)).state_dict()
    assert list(of_state_dict(wrapped).shapes) == list(of_module(model).shapes)
    assert common_names(["h.0._checkpoint_wrapped_module.w"]) == ["h.0.w"]
    assert common_names(["module.a", "head.a"]) == ["module.a", "head.a"]


def test_a_checkpoint_of_a_loop_is_no_state_dict():
    with pytest.raises(ConfigError, match=r"'model' holds OrderedDict, not a tensor\. It looks"):
        of_state_dict({"model": gpt2().state_dict(), "step": 3})


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        net = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="weight is on the meta device and has no values"):
        of_module(net)


@given(st.lists(st.integers(0, 6), max_size=4), st.integers(1, 40))
def test_pieces_cover_each_entry_once_and_are_small(shape, size):
    begins = tuple(range(len(shape)))
    seen = torch.zeros([n + b for n, b in zip(shape, begins, strict=True)])
    for where in pieces_of(tuple(shape), begins, size):
        assert seen[where].numel() <= max(size, shape[-1] if shape else 1)
        seen[where] += 1
    box = seen[tuple(slice(b, None) for b in begins)]
    assert box.eq(1).all() and seen.sum() == math.prod(shape)


def test_names_of_files_come_in_network_order():
    names = [
        "lm_head.weight", "model.decoder.layers.0.fc1.weight", "model.encoder.layers.10.fc1.weight",
        "model.encoder.layers.9.fc1.weight", "model.norm.weight", "model.shared.weight",
    ]  # fmt: skip
    assert network_order(names) == [
        "model.shared.weight", "model.encoder.layers.9.fc1.weight",
        "model.encoder.layers.10.fc1.weight", "model.decoder.layers.0.fc1.weight",
        "lm_head.weight", "model.norm.weight",
    ]  # fmt: skip
