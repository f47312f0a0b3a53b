"""network_distance on models that are sharded over real gloo ranks."""

from __future__ import annotations

import pytest

from tests.distributed import live_distance
from tests.distributed.ranks import HERE, forked


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_live_models_are_measured_where_they_lie(ranks: int) -> None:
    done = forked(ranks, HERE / "live_distance.py")
    names = [check.__name__ for check in live_distance.CHECKS]
    lines = [f"rank {rank}: {name}\n" for rank in range(ranks) for name in names]
    missing = [line for line in lines if line not in done.stdout]
    assert not missing and done.returncode == 0, "\n".join([*missing, done.stdout, done.stderr])
