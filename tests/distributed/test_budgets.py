"""DistanceBudget over real gloo ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import budgets
from tests.distributed.ranks import HERE, forked


@pytest.mark.dist
@pytest.mark.slow
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


@pytest.mark.dist
@pytest.mark.slow
def test_budgets_of_a_trainer_over_fsdp2(tmp_path: Path) -> None:
    names = ("held_and_resumed_with_the_same_bits", "stopped_alike_on_all_ranks")
    done = forked(2, HERE / "budget_trainer.py", str(tmp_path))
    missing = [
        name for name in names for rank in (0, 1) if f"rank {rank}: {name}\n" not in done.stdout
    ]
    assert not missing and done.returncode == 0, "\n".join([*missing, done.stdout, done.stderr])
