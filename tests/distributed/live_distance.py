"""What ranks do in test_live_distance: sharded models measured where they lie."""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode

from hf_relopt import Distance, UnsupportedSetup, network_distance
from tests.distance.nets import gpt2, moved
from tests.distributed.ranks import run_checks


def sharded(model: nn.Module, *, mesh: object = None) -> nn.Module:
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def two(**size: int) -> tuple[nn.Module, nn.Module]:
    # 47 rows of the embedding: uneven shards.
    before = gpt2(vocab_size=47, **size)
    return before, moved(before)


def assert_equal(found: Distance, expected: Distance) -> None:
    assert [layer.name for layer in found.layers] == [layer.name for layer in expected.layers]
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        for name in ("norm", "update_norm", "relative_update", "cosine"):
            assert abs(getattr(mine, name) - getattr(theirs, name)) <= 1e-9 * theirs.norm, mine
        assert (mine.changed, mine.sign_changes) == (theirs.changed, theirs.sign_changes)
    assert abs(found.log_drt - expected.log_drt) < 1e-9
    assert [e.name for e in found.apart] == [e.name for e in expected.apart]


def two_sharded_models_equal_one_process_with_one_all_reduce() -> None:
    before, after = two()
    expected = network_distance(before, after)
    before, after = sharded(before), sharded(after)
    with CommDebugMode() as mode:
        found = network_distance(before, after)
    assert_equal(found, expected)
    counts = {str(name): count for name, count in mode.get_comm_counts().items() if count}
    assert list(counts.values()) == [1], counts


def a_sharded_model_is_measured_from_its_initial_checkpoint() -> None:
    before, after = two()
    expected = network_distance(before, after)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(before, path)
        assert_equal(network_distance(path, sharded(after)), expected)
        assert_equal(network_distance(before.state_dict(), sharded(two()[1])), expected)


def replicas_are_measured_without_a_collective() -> None:
    before, after = two()
    replica = nn.parallel.DistributedDataParallel(after).module
    with CommDebugMode() as mode:
        found = network_distance(before, replica)
    assert_equal(found, network_distance(before, after))
    assert sum(mode.get_comm_counts().values()) == 0


def hybrid_shards_count_once() -> None:
    if dist.get_world_size() < 4:
        return
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    before, after = two()
    expected = network_distance(before, after)
    assert_equal(network_distance(before, sharded(after, mesh=mesh)), expected)


def operator_norms_of_shards_are_refused() -> None:
    before, after = two()
    try:
        network_distance(before, sharded(copy.deepcopy(after)), norm="spectral")
    except UnsupportedSetup as error:
        assert "is sharded over ranks" in str(error), error
    else:
        raise AssertionError("not refused")


CHECKS = [
    two_sharded_models_equal_one_process_with_one_all_reduce,
    a_sharded_model_is_measured_from_its_initial_checkpoint,
    replicas_are_measured_without_a_collective,
    hybrid_shards_count_once,
    operator_norms_of_shards_are_refused,
]

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run_checks(CHECKS, sys.argv[1:])
