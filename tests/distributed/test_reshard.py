"""A distributed checkpoint goes on alike on any number of ranks, under DDP, FSDP2 or alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed import reshard
from tests.distributed.ranks import HERE, forked

SCRIPT = HERE / "reshard.py"
# saved a: by two ranks under FSDP2; b: by two under DDP; c: by a single process
_ACTIONS = (
    (2, "save:fsdp2:a", "save:ddp:b", "load:fsdp2:a", "load:ddp:a", "load:fsdp2:b"),
    (1, "load:plain:a", "load:plain:b", "save:plain:c"),
    (3, "load:fsdp2:a", "load:fsdp2:b", "load:fsdp2:c"),
)
LAUNCHES = tuple(
    (ranks, *actions, *(f"{action[:-1]}spectral_{action[-1]}" for action in actions))
    for ranks, *actions in _ACTIONS
)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reshard")
    for ranks, *actions in LAUNCHES:
        done = forked(ranks, SCRIPT, str(folder), *actions)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.dist
@pytest.mark.parametrize(
    "end",
    [
        f"{name}-{layout}-{ranks}"
        for ranks, *actions in LAUNCHES
        for what, layout, name in (action.split(":") for action in actions)
        if what == "load"
    ],
)
def test_a_resharded_run_ends_where_an_unbroken_one_does(ends: Path, end: str) -> None:
    found = torch.load(ends / f"{end}.pt", weights_only=True)
    # The iteration rounds differently for another stack of matrices.
    close = 1e-4 if end.startswith("spectral") else 1e-6
    for index, (ours, theirs) in enumerate(zip(found, reshard.unbroken(end), strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close / 10, msg=f"tensor {index}")
