"""One process without a group; several are in tests/distributed."""

from __future__ import annotations

import torch.distributed as dist

from hf_relopt.sharding.ranks import rank_and_count, wait_for_all


def test_one_process_is_the_first_of_one_and_waits_for_nobody():
    assert rank_and_count() == (0, 1)
    wait_for_all()


def test_a_group_of_one_is_the_same(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert rank_and_count() == (0, 1)
        wait_for_all()
    finally:
        dist.destroy_process_group()
