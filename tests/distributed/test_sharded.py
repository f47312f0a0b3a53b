"""FSDP2, HSDP, tensor parallelism and plain DTensors against one process, on real gloo ranks.

And the Trainer and Accelerate over FSDP2, with their checkpoints.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import torch

from hf_relopt.hf.checkpoints import find_fault
from hf_relopt.telemetry.lines import read
from tests.distributed import framed, sharded
from tests.distributed.lost_rank import HANGS_FOR
from tests.distributed.ranks import HERE, forked, torchrun, without_a_launcher

TRAINER_CHECKS = [
    "trainer_shards_and_equals_ddp",
    "the_record_and_the_card_are_of_the_full_weights",
    "telemetry_is_of_the_full_model_and_written_once",
    "trainer_resumes_with_the_same_bits",
    "another_optimizers_shards_are_refused_or_discarded",
    "another_directions_shards_are_refused",
    "accelerate_loop_swaps_the_tensors",
    "what_this_accelerate_does_wrong_is_refused",
    "ddp_and_fsdp2_go_on_from_each_other",
    "all_ranks_see_what_the_one_sees_that_has_weights",
    "evaluate_before_train_is_refused",
    "recipe_trains_and_goes_on",
]


def assert_done(done: subprocess.CompletedProcess[str], ranks: int, checks: list[str]) -> None:
    lines = [f"rank {rank}: {check}\n" for rank in range(ranks) for check in checks]
    missing = [line for line in lines if line not in done.stdout]
    assert not missing, "\n".join([*missing, done.stdout, done.stderr])
    assert done.returncode == 0, done.stderr


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("ranks", list(sharded.CHECKS))
def test_ranks_equal_one_process(ranks: int) -> None:
    """All checks in one launch: starting the ranks costs more than the checks."""
    done = forked(ranks, HERE / "sharded.py", str(ranks))
    assert_done(done, ranks, [check.__name__ for check in sharded.CHECKS[ranks]])


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("ranks", list(framed.CHECKS))
def test_frames_equal_one_process(ranks: int) -> None:
    done = forked(ranks, HERE / "framed.py", str(ranks))
    assert_done(done, ranks, [check.__name__ for check in framed.CHECKS[ranks]])


@pytest.mark.dist
@pytest.mark.slow
def test_trainer_and_accelerate_over_fsdp2(tmp_path: Path) -> None:
    done = forked(2, HERE / "trainer_fsdp2.py", str(tmp_path))
    assert_done(done, 2, TRAINER_CHECKS)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_lost_rank_ends_the_step_with_an_error(how: str) -> None:
    """The engine's timeout is respected: nobody waits for ever, and no launcher is needed."""
    left, lost = without_a_launcher(2, HERE / "lost_rank.py", how)
    try:
        out, errors = left.communicate(timeout=HANGS_FOR.total_seconds() / 2)
    finally:
        lost.kill()
        lost.communicate()
    assert out == "one step\n", errors
    assert left.returncode > 0, errors
    assert "RuntimeError" in errors


@pytest.mark.dist
@pytest.mark.slow
def test_killed_in_a_step_and_in_a_save_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """A dead rank ends the others, and what a save left half-done is passed over."""
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    run = killed / "run"
    for how, left in (("step", ["checkpoint-2"]), ("save", ["checkpoint-2", "checkpoint-4"])):
        began = time.monotonic()
        assert torchrun(2, HERE / "killed.py", str(killed), how).returncode != 0
        assert time.monotonic() - began < 100
        assert sorted(folder.name for folder in run.glob("checkpoint-*")) == left
    assert find_fault(run / "checkpoint-2") is None
    assert find_fault(run / "checkpoint-4") is not None
    for folder in (killed, unbroken):
        done = forked(2, HERE / "killed.py", str(folder), "end")
        assert done.returncode == 0, done.stderr
    ends = [torch.load(folder / "end.pt", weights_only=True) for folder in (killed, unbroken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
    # What was trained again is read once, and says the same of each step.
    lines = [read(folder / "run" / "telemetry.jsonl") for folder in (killed, unbroken)]
    steps = [[line for line in each if line["kind"] == "step"] for each in lines]
    assert [line["step"] for line in steps[0]] == [line["step"] for line in steps[1]] != []
    for resumed, whole in zip(*steps, strict=True):
        assert resumed["relative_update"] == whole["relative_update"]
