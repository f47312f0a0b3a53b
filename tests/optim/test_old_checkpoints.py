"""Checkpoints that 0.1.0 wrote load, and the run goes on as it would have there.

To the bit where torch computes as on the machine that wrote them.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from tests.optim import old_checkpoints as old
from tests.tensors import assert_as_on_another_cpu

# What old_checkpoints.py wrote with 0.1.0 (e84ce3e).
OF_0_1_0 = Path(__file__).parent / "checkpoints_0_1_0.tar.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints_0_1_0")
    with tarfile.open(OF_0_1_0) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", old.SETTINGS)
def test_a_checkpoint_of_0_1_0_continues_as_there(name: str, folder: Path) -> None:
    saved = torch.load(folder / f"{name}.pt", weights_only=True)
    model = old.net(old.dtype_of(name))
    model.load_state_dict(saved["weights"])
    optimizer = old.make(model, name)
    optimizer.load_state_dict(saved["optimizer"])
    old.run(model, optimizer, old.HALF)
    for key, param in model.state_dict().items():
        there = saved["after"][key]
        if name == "momentum_bfloat16":
            # It was rounded before it was followed, and is rounded after that now.
            moved = float((there - saved["weights"][key]).norm())
            assert float((param - there).norm()) < 0.01 * moved, key
        else:
            assert_as_on_another_cpu(param, there, key)
