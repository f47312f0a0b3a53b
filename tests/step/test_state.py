"""State: what is kept of each kind of tensor under each direction and scale."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage
from hf_relopt.options.method import method_of
from hf_relopt.step.state import has_state, new_buffers, slices, state_fault, widest
from tests.cases import ADAM_STATE, DIRECTION_STATES
from tests.frames import PAIRS, each_pair, frame_of
from tests.oracles.frame import is_vector
from tests.tensors import run, same_bits, set_gradients, snapshot, state_of, to_numpy, weights


@each_pair
def test_state_is_frozen_per_kind_of_tensor(direction: str, scale: str) -> None:
    params, groups = frame_of(torch.bfloat16, direction, scale)
    optimizer = Fromage(groups)
    run(optimizer, params, (1,))
    blocks = {"tensor": (1, 1), "row": (6, 3), "block": (2, 3)}[scale]
    for param in params:
        state = state_of(optimizer, param)
        vector = is_vector(to_numpy(param))
        if vector and direction != "gradient":
            assert set(state) == ADAM_STATE
        else:
            assert set(state) == DIRECTION_STATES[direction]
        anchors = 1 if vector else blocks[param.dim() - 2]
        assert state["anchor_norm"].shape == (anchors,)
        for name in {"momentum", "second_moment"} & set(state):
            assert state[name].shape == param.shape
        assert all(value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize(("direction", "scale"), [pair for pair in PAIRS if pair[0] != "gradient"])
def test_a_framed_anchor_is_written_once(direction: str, scale: str) -> None:
    params, groups = frame_of(torch.float32, direction, scale)
    optimizer = Fromage(groups)
    run(optimizer, params, (1,))
    anchors = [state_of(optimizer, param)["anchor_norm"] for param in params]
    written = [anchor._version for anchor in anchors]
    run(optimizer, params, (2, 3))
    assert [anchor._version for anchor in anchors] == written


@pytest.mark.parametrize("name", ["momentum", "skipped", "anchor_norm"])
def test_their_state_under_a_name_of_ours_is_refused(name: str) -> None:
    params = weights(torch.float32)
    optimizer = Fromage(params, direction="momentum")
    optimizer.state[params[0]][name] = torch.zeros_like(params[0])
    set_gradients(params, 1)
    before = snapshot(params)
    with pytest.raises(ConfigError, match=r"other code keeps.*another name than.*momentum"):
        optimizer.step()
    assert all(map(same_bits, params, before))


def group_of(param: nn.Parameter, **options: Any) -> dict[str, Any]:
    return Fromage([param], **options).param_groups[0]


@pytest.mark.parametrize(("shape", "options", "count"), [
    ((6, 4), {}, 1), ((6, 4), {"scale": "row"}, 6),
    ((6, 4), {"scale": "block", "split_sizes": 2}, 2),
    ((6, 4), {"scale": "block", "split_sizes": (1, 3), "split_dim": 1}, 2),
    ((3, 4, 2), {"scale": "block"}, 3), ((0, 4, 2), {"scale": "block"}, 0),
    ((5,), {"scale": "row"}, 1), ((5,), {"scale": "row", "direction": "adam"}, 1),
], ids=str)  # fmt: skip
def test_a_weight_has_an_anchor_for_each_slice(
    shape: tuple[int, ...], options: dict[str, Any], count: int
) -> None:
    param = nn.Parameter(torch.ones(shape))
    assert slices(method_of(group_of(param, **options), param), param.shape) == count
    run(optimizer := Fromage([param], **options), [param], (1,))
    assert state_of(optimizer, param)["anchor_norm"].shape == (count,)


@pytest.mark.parametrize(("change", "words"), [
    ({"momentum": None}, "momentum is missing for a weight under fromage; it has anchor_norm"),
    ({"step": 3}, r"step is 3 \(int\), not a tensor"),
    ({"momentum": torch.eye(4, 3).to_sparse()}, "momentum is sparse"),
    ({"momentum": torch.ones(4, 3, device="meta")}, "momentum is on the meta device"),
    ({"momentum": torch.ones(3, 4)}, r"momentum has shape \(3, 4\) in place of \(4, 3\)"),
    ({"anchor_norm": torch.ones(2)}, r"anchor_norm has shape \(2,\) in place of \(1,\)"),
    ({"momentum": torch.ones(4, 3).half()}, "momentum has dtype torch.float16 in place of"),
    ({"skipped": torch.tensor(0)}, "skipped has dtype torch.int64 in place of torch.float32"),
], ids=str)  # fmt: skip
def test_state_that_does_not_fit_is_told_in_words(change: dict[str, Any], words: str) -> None:
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = Fromage([param], direction="momentum")
    run(optimizer, [param], (1,))
    group, state = optimizer.param_groups[0], dict(optimizer.state[param])
    assert state_fault(group, param, state) is None
    for name, value in change.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    fault = state_fault(group, param, state)
    assert fault is not None and re.search(words, fault), fault


def test_state_of_others_and_numbers_with_a_dimension_fit() -> None:
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = Fromage([param])
    run(optimizer, [param], (1,))
    group, state = optimizer.param_groups[0], dict(optimizer.state[param])
    assert state_fault(group, param, {}) is None
    assert state_fault(group, param, {"step": "theirs", "z": 5}) is None
    state.update(step=torch.ones(1), anchor_norm=torch.tensor(2.0), z=None)
    assert state_fault(group, param, state) is None
    assert has_state(state) and not has_state({"step": torch.ones(())})


def test_new_moments_lie_in_memory_as_the_weight_does() -> None:
    weight = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    param = nn.Parameter(weight)
    found = new_buffers(method_of(group_of(param, direction="adam"), param), param)
    assert set(found) == {"momentum", "second_moment"}
    for value in found.values():
        assert value.stride() == param.stride() and not value.any()
    assert widest(torch.device("cpu")) is torch.float64
    assert widest(torch.device("mps")) is torch.float32
