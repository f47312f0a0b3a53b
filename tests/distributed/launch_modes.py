"""What two ranks do in test_launch_modes: each check prints its name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from hf_relopt import Fromage, UnsupportedSetup, create_optimizer
from hf_relopt.hf import guards
from hf_relopt.hf.optimizer_class import class_and_options
from hf_relopt.hf.together import on_main_process
from tests.distributed.ranks import run_checks

CPU = torch.device("cpu")
STEPS = 3


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A matrix, a zero-start bias, another matrix: every kind of tensor the rules tell apart."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    nn.init.zeros_(model[0].bias)
    return model


def batch(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rows: slice) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs = batch(step)[rows].to(next(model.parameters()).dtype)
        model(inputs).float().square().mean().backward()
        optimizer.step()


def whole_batch(optim: str, dtype: torch.dtype, lr: float = 0.05) -> list[torch.Tensor]:
    """The weights of one process that sees every row."""
    model = net(dtype)
    train(model, create_optimizer(model, optim, lr), slice(None))
    return [param.detach() for param in model.parameters()]


def on_both_ranks(tensor: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return parts


def refused(what: str, call: Callable[[], object], *words: str) -> None:
    try:
        call()
    except UnsupportedSetup as error:
        for word in words:
            assert word in str(error), (what, word, str(error))
        return
    raise AssertionError(f"{what}: not refused")


def ddp_equals_one_process() -> None:
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    for optim in ("fromage", "madam"):
        model = DistributedDataParallel(net())
        train(model, create_optimizer(model, optim, 0.05), mine)
        expected = whole_batch(optim, torch.float32)
        for param, alone in zip(model.parameters(), expected, strict=True):
            first, second = on_both_ranks(param)
            assert torch.equal(first, second), optim
            assert not torch.equal(alone, torch.zeros_like(alone))
            torch.testing.assert_close(param.detach(), alone, rtol=1e-6, atol=1e-6)


def ddp_shares_spectral_work() -> None:
    """The replicas stay equal to the bit, and are what one process would have."""
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    for options in ({}, {"share_work": True}):
        model = DistributedDataParallel(net())
        train(model, create_optimizer(model, "fromage_spectral", 0.02, **options), mine)
        expected = whole_batch("fromage_spectral", torch.float32, lr=0.02)
        for param, alone in zip(model.parameters(), expected, strict=True):
            first, second = on_both_ranks(param)
            assert torch.equal(first, second)
            torch.testing.assert_close(param.detach(), alone, rtol=1e-4, atol=1e-4)


def the_trainer_shares_work_under_ddp() -> None:
    """Accelerate says that every process has all weights, and the handler takes its word."""
    PartialState._reset_state()
    state = PartialState(cpu=True)
    try:
        for optim, shared in (("fromage_spectral", True), ("fromage", False)):
            args = TrainingArguments("unused", optim=optim, use_cpu=True, report_to="none")
            model = net()
            cls, options = class_and_options(args, model)
            optimizer = cls(model.parameters(), **options)
            assert {group["share_work"] for group in optimizer.param_groups} == {shared}
        assert state.num_processes == dist.get_world_size()
    finally:
        PartialState._reset_state()


def given_gradients_give_the_same_weights() -> None:
    """The gradient itself is the same on every rank after the all-reduce: so is the step."""
    for optim in ("fromage", "madam"):
        model, alone = net(), net()
        pair = create_optimizer(model, optim, 0.05), create_optimizer(alone, optim, 0.05)
        for step in range(STEPS):
            for index, (ours, theirs) in enumerate(
                zip(model.parameters(), alone.parameters(), strict=True)
            ):
                generator = torch.Generator().manual_seed(100 * step + index)
                halves = torch.randn((2, *ours.shape), generator=generator)
                ours.grad = halves[dist.get_rank()].clone()
                dist.all_reduce(ours.grad)
                ours.grad /= 2
                theirs.grad = halves.mean(0)
            for optimizer in pair:
                optimizer.step()
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def bf16_rounds_alike_on_both_ranks() -> None:
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    for optim in ("fromage", "madam"):
        model = DistributedDataParallel(net(torch.bfloat16))
        # What a rank did with the global generator before must not matter.
        torch.manual_seed(1000 + dist.get_rank())
        train(model, create_optimizer(model, optim, 0.003), mine)
        for param, start in zip(model.parameters(), net(torch.bfloat16).parameters(), strict=True):
            first, second = on_both_ranks(param)
            assert torch.equal(first, second), optim
            assert not torch.equal(param, start), optim


def fsdp1_is_refused() -> None:
    for orig in (True, False):
        wrapped = FullyShardedDataParallel(net(), use_orig_params=orig, device_id=CPU)
        refused("guard", lambda wrapped=wrapped: guards.check_launch(wrapped), "FSDP1", "FSDP2")
        optimizer = create_optimizer(wrapped, "fromage")
        refused(
            f"FSDP1 first, use_orig_params={orig}",
            lambda wrapped=wrapped, optimizer=optimizer: train(wrapped, optimizer, slice(None)),
            "FSDP1",
            "DDP",
        )
    model = net()
    optimizer = create_optimizer(model, "madam")
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=CPU)
    refused("FSDP1 last", lambda: train(wrapped, optimizer, slice(None)), "FSDP1", "FSDP2")


def what_the_main_process_finds_or_refuses_holds_for_all() -> None:
    """The others do not even look."""
    looked: list[int] = []

    def find() -> str:
        looked.append(dist.get_rank())
        return f"found by rank {dist.get_rank()}"

    def refuse() -> None:
        raise UnsupportedSetup(f"refused by rank {dist.get_rank()}")

    assert on_main_process(find) == "found by rank 0"
    assert looked == ([0] if dist.get_rank() == 0 else [])
    refused("on all ranks", lambda: on_main_process(refuse), "refused by rank 0")


def partial_sums_are_refused() -> None:
    """A DTensor whose entries are on no rank: it has no norm until somebody adds it up."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weight = nn.Parameter(DTensor.from_local(torch.ones(3, 2), mesh, [Partial()]))
    weight.grad = torch.ones_like(weight)
    refused("partial", Fromage([("weight", weight)]).step, "partial", "Shard")


CHECKS = (
    ddp_equals_one_process,
    ddp_shares_spectral_work,
    the_trainer_shares_work_under_ddp,
    given_gradients_give_the_same_weights,
    bf16_rounds_alike_on_both_ranks,
    fsdp1_is_refused,
    partial_sums_are_refused,
    what_the_main_process_finds_or_refuses_holds_for_all,
)


def main() -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run_checks(CHECKS, sys.argv[1:])


if __name__ == "__main__":
    main()
