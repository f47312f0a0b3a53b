"""DistanceBudget over real gloo ranks."""

from __future__ import annotations

import pytest

from tests.distributed import budgets
from tests.distributed.ranks import HERE, forked


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_budgets_mean_the_same_on_any_number_of_ranks(ranks: int) -> None:
    names = [check.__name__ for check in budgets.CHECKS]
    if ranks == 4:
        # What two ranks cannot be.
        names = ["sharded_holds_equal_one_process", "hybrid_shards_are_held_too"]
    done = forked(ranks, HERE / "budgets.py", *names)
    lines = [f"rank {rank}: {name}\n" for rank in range(ranks) for name in names]
    missing = [line for line in lines if line not in done.stdout]
    assert not missing and done.returncode == 0, "\n".join([*missing, done.stdout, done.stderr])
