"""State: what is kept of each kind of tensor under each direction and scale."""

from __future__ import annotations

import pytest
import torch

from hf_relopt import ConfigError, Fromage
from tests.cases import ADAM_STATE, MOMENTUM_STATE
from tests.frames import PAIRS, STATES, each_pair, frame_of
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
            assert set(state) == STATES.get(direction, MOMENTUM_STATE)
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
