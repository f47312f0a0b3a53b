"""What ranks do in test_budgets: budgets over sharded and replicated weights."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode

from hf_relopt import DistanceBudget, create_optimizer
from tests.distance.nets import gpt2
from tests.distributed.ranks import run_checks

RHO, STEPS = 0.02, 5


def shared_folder() -> Path:
    said = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(said, src=0)
    return Path(str(said[0]))


def network(sharded: bool, mesh: Any = None) -> nn.Module:
    # 47 rows of the embedding: uneven shards.
    model = gpt2(vocab_size=47).eval()  # without dropout
    if sharded:
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def full(param: Tensor) -> Tensor:
    return (param.full_tensor() if hasattr(param, "full_tensor") else param).detach()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: full(param).clone() for name, param in model.named_parameters()}


def optimizer_of(model: nn.Module, name: str) -> Any:
    if name == "adamw":
        # A large epsilon: what is rounding noise for one launch mode stays small in the other.
        return torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
    # Steps along "rms", as presets give embeddings, have no bound in terms of the weight's norm.
    rows = {"embedding": {"direction": "momentum"}} if name == "fromage_spectral" else {}
    return create_optimizer(model, name, 0.02, overrides=rows)


def train(
    model: nn.Module, optimizer: Any, budget: DistanceBudget, steps: int = STEPS, first: int = 0
) -> int:
    """Every rank sees the same tokens, so that one process takes the same steps."""
    for step in range(first, first + steps):
        tokens = (torch.arange(8) + step) % 47
        model(input_ids=tokens[None], labels=tokens[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if budget.after_step():
            return step + 1
    return first + steps


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=2e-5, msg=name)


def sharded_holds_equal_one_process() -> None:
    for name in ("adamw", "fromage"):
        for options in ({}, {"copy": "bfloat16"}, {"copy": "disk"}):
            ends, alone = [], []
            for sharded in (False, True):
                model = network(sharded)
                start = weights(model)
                optimizer = optimizer_of(model, name)
                budget = DistanceBudget(hold=RHO, **options)
                budget.begin(model, optimizer, folder=shared_folder())
                train(model, optimizer, budget)
                ends.append(weights(model))
                alone.append(budget.left_alone)
            close(*ends)
            assert alone[0] == alone[1] and alone[0]
            moved = [
                float((ends[1][n] - w).norm() / w.norm()) for n, w in start.items() if w.norm() > 0
            ]
            slack = 2.0**-8 if options.get("copy") == "bfloat16" else 1e-5
            assert RHO - slack < max(moved) <= RHO + slack, (name, options, max(moved))


def a_pull_of_shards_is_one_all_reduce() -> None:
    model = network(True)
    budget = DistanceBudget(hold=RHO)
    budget.begin(model)
    with CommDebugMode() as mode:
        budget.after_step()
    counts = {str(name): count for name, count in mode.get_comm_counts().items() if count}
    assert counts == {"c10d.allreduce_": 1}, counts
    replicas = network(False)
    budget = DistanceBudget(hold=RHO)
    budget.begin(replicas)
    with CommDebugMode() as mode:
        budget.after_step()
    assert sum(mode.get_comm_counts().values()) == 0


def sharded_limits_equal_one_process() -> None:
    folder = shared_folder()
    path = folder / "start.safetensors"
    if dist.get_rank() == 0:
        save_model(network(False), path)
    dist.barrier()
    for options in ({"initial": path}, {"copy": "exact"}, {"copy": "disk"}):
        found = []
        for sharded in (False, True):
            model = network(sharded)
            optimizer = optimizer_of(model, "adamw")
            budget = DistanceBudget(drt=0.6, every=2, **options)
            budget.begin(model, optimizer, folder=shared_folder())
            taken = train(model, optimizer, budget, 40)
            assert budget.last is not None and budget.last.passed is not None
            found.append((taken, budget.last, weights(model)))
        assert found[0][0] == found[1][0] < 40
        assert abs(found[0][1].log_drt - found[1][1].log_drt) < 1e-4
        close(found[0][2], found[1][2])


def sharded_bounds_equal_one_process() -> None:
    for name in ("fromage", "fromage_spectral"):
        found = []
        for sharded in (False, True):
            model = network(sharded)
            optimizer = optimizer_of(model, name)
            budget = DistanceBudget(drt=2.0)
            budget.begin(model, optimizer)
            found.append((train(model, optimizer, budget, 30), budget.last))
        assert found[0] == found[1] and found[0][0] < 30, found


def a_resumed_hold_has_the_same_bits_and_other_ranks_can_resume_it() -> None:
    folder = shared_folder()
    whole = network(True)
    optimizer, budget = optimizer_of(whole, "fromage"), DistanceBudget(hold=RHO)
    budget.begin(whole, optimizer, folder=folder)
    train(whole, optimizer, budget)
    half, state = weights(whole), budget.state_dict()
    saved = optimizer.state_dict()
    names = {path.name for path in folder.iterdir()}
    ranks = dist.get_world_size()
    assert names == {f"initial-{n:05d}-of-{ranks:05d}.safetensors" for n in range(ranks)}

    def load(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for name, param in model.named_parameters():
                if hasattr(param, "full_tensor"):
                    from torch.distributed.tensor import distribute_tensor

                    mesh, placements = param.device_mesh, param.placements
                    param.copy_(distribute_tensor(half[name], mesh, placements))
                else:
                    param.copy_(half[name])
        return model

    again = load(network(True))
    optimizer = optimizer_of(again, "fromage")
    optimizer.load_state_dict(saved)
    resumed = DistanceBudget(hold=RHO)
    resumed.begin(again, optimizer, folder=folder, state=state)
    train(again, optimizer, resumed, first=STEPS)
    train(whole, optimizer_with(whole, saved), budget, first=STEPS)
    ends = weights(whole), weights(again)
    differ = [n for n in ends[0] if not torch.equal(ends[0][n], ends[1][n])]
    assert not differ, {n: float((ends[0][n] - ends[1][n]).abs().max()) for n in differ}
    # In one process, from what the ranks have written.
    alone = load(network(False))
    single = DistanceBudget(hold=RHO)
    single.begin(alone, folder=folder, state=state)
    with torch.no_grad():
        for param in alone.parameters():
            param.mul_(1.5)
    single.after_step()
    start = weights(network(False))
    for name, param in alone.named_parameters():
        size = start[name].norm()
        assert (param.detach() - start[name]).norm() <= RHO * size * (1 + 1e-5) or size == 0, name


def optimizer_with(model: nn.Module, saved: Any) -> Any:
    optimizer = optimizer_of(model, "fromage")
    optimizer.load_state_dict(saved)
    return optimizer


def hybrid_shards_are_held_too() -> None:
    if dist.get_world_size() < 4:
        return
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    ends = []
    for which in (None, mesh):
        model = network(which is not None, which)
        optimizer = optimizer_of(model, "fromage")
        budget = DistanceBudget(hold=RHO, copy="disk")
        budget.begin(model, optimizer, folder=shared_folder())
        train(model, optimizer, budget)
        ends.append(weights(model))
    close(*ends)


def replicas_are_identical_on_all_ranks() -> None:
    model = nn.parallel.DistributedDataParallel(network(False))
    optimizer = optimizer_of(model, "adamw")
    budget = DistanceBudget(hold=RHO)
    budget.begin(model, optimizer, folder=shared_folder())
    for step in range(STEPS):
        tokens = (torch.arange(8) + step + 3 * dist.get_rank()) % 47
        model(input_ids=tokens[None], labels=tokens[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        budget.after_step()
    for param in model.parameters():
        parts = [torch.empty_like(param) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, param.detach())
        assert all(torch.equal(part, parts[0]) for part in parts)
    assert set(budget.left_alone) == {
        n for n, p in network(False).named_parameters() if not p.any()
    }


CHECKS = [
    sharded_holds_equal_one_process,
    a_pull_of_shards_is_one_all_reduce,
    sharded_limits_equal_one_process,
    sharded_bounds_equal_one_process,
    a_resumed_hold_has_the_same_bits_and_other_ranks_can_resume_it,
    hybrid_shards_are_held_too,
    replicas_are_identical_on_all_ranks,
]

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run_checks(CHECKS, sys.argv[1:])
