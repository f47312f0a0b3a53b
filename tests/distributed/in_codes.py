"""What ranks do in test_in_codes: weights in codes under DDP, FSDP2 and Accelerate.

Every check compares with one process that has whole tensors, which each rank is by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2LMHeadModel

from hf_relopt import ConfigError, RelOptTrainer, UnsupportedSetup, compress, create_optimizer
from hf_relopt.hf import guards
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.nn.compression import convert
from tests.distributed.ranks import run_checks
from tests.hf.tiny import arguments, gpt2, rows

FOLDER = Path()
STEPS = 3


def model(form: str, seed: int = 0) -> GPT2LMHeadModel:
    """50 and 16 rows: no number of ranks but two divides both."""
    made = gpt2(seed)
    convert(made, form)
    return made


def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The same batches on every rank, so that the mean of their gradients is each of them."""
    ids = torch.stack([row["input_ids"] for row in rows(8)])
    for step in range(STEPS):
        batch = ids[(torch.arange(4) + step) % 8]
        net(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def alone(form: str) -> GPT2LMHeadModel:
    net = model(form)
    train(net, create_optimizer(net, "integer_madam", 0.02))
    return net


def same_codes(found: nn.Module, expected: nn.Module) -> None:
    """This rank's rows of the codes, to the bit; numbers differ by the rounding of a mean."""
    rank, world = dist.get_rank(), dist.get_world_size()
    changed = False
    start = gpt2()
    for (name, own), whole in zip(found.named_parameters(), expected.parameters(), strict=True):
        local = own.to_local() if isinstance(own, DTensor) else own
        if isinstance(own, DTensor):
            each = -(-len(whole) // world)
            pick = slice(min(rank * each, len(whole)), min((rank + 1) * each, len(whole)))
        else:
            pick = slice(0, len(whole))
        if isinstance(whole, LNSTensor):
            assert isinstance(local, LNSTensor), name
            assert torch.equal(local.packed, whole.packed[pick]), name
            assert local.shape == whole.shape or isinstance(own, DTensor)
            first = LNSTensor.from_float(start.get_parameter(name).detach(), whole.form)
            changed |= not torch.equal(first.packed, whole.packed)
        elif not name.endswith("c_attn.bias"):  # keys' biases follow rounding noise
            torch.testing.assert_close(local, whole[pick], rtol=1e-4, atol=1e-6)
    assert changed


def sharded(form: str, **how: Any) -> GPT2LMHeadModel:
    net = model(form)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in net.transformer.h:
        fully_shard(block, mesh=mesh, **how)
    fully_shard(net, mesh=mesh, **how)
    return net


def ddp(form: str) -> None:
    net = model(form)
    optimizer = create_optimizer(DistributedDataParallel(net), "integer_madam", 0.02)
    train(net, optimizer)
    same_codes(net, alone(form))


def ddp_of_other_weights() -> None:
    """As numbers they could be copied, but the ranks would round them by scales of their own."""
    net = model("lns8", seed=dist.get_rank())
    if dist.get_rank() == 0:
        DistributedDataParallel(net)
        return
    with pytest.raises(ConfigError, match="would write numbers"):
        DistributedDataParallel(net)


def fsdp2(form: str) -> None:
    net = sharded(form)
    optimizer = create_optimizer(net, "integer_madam", 0.02)
    train(net, optimizer)
    same_codes(net, alone(form))
    state = optimizer.state[net.transformer.wte.weight]
    held = state["second_moment"].to_local()
    assert held.dtype is torch.uint8 and len(held) < 50


def bytes_of_a_gather() -> None:
    """What is sent is a quarter of float32, scales beside it."""
    net = sharded("lns8")
    weight = net.transformer.h[0].mlp.c_fc.weight.to_local()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sent, _ = weight.fsdp_pre_all_gather(mesh)
    assert sum(tensor.nbytes for tensor in sent) == -(-16 // dist.get_world_size()) * (64 + 4)


def mixed_precision() -> None:
    net = sharded("lns8", mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    seen = []
    handle = net.transformer.h[0].mlp.register_forward_hook(
        lambda module, given, out: seen.append((module.c_fc.weight.dtype, out.dtype))
    )
    train(net, create_optimizer(net, "integer_madam", 0.02))
    handle.remove()
    assert seen[0] == (torch.bfloat16, torch.bfloat16)
    assert net.transformer.h[0].mlp.c_fc.weight.dtype is torch.float32


def full_tensors_are_numbers() -> None:
    net, whole = sharded("lns8"), model("lns8")
    for own, expected in zip(net.parameters(), whole.parameters(), strict=True):
        full = own.full_tensor()
        assert type(full) is torch.Tensor
        assert torch.equal(full, expected)


def accelerates_fsdp2_is_refused() -> None:
    """It finds an optimizer's weights again by their addresses, which codes have not."""
    net = model("lns8")
    AcceleratorState()
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(fsdp_version=2)
    with pytest.raises(UnsupportedSetup, match=r"Accelerate's FSDP2 .* fully_shard"):
        guards.check_accelerate(net, resumes=False)
    AcceleratorState._reset_state()


def accelerate_loop() -> None:
    accelerator = Accelerator(cpu=True)
    net = model("lns10")
    net, optimizer = accelerator.prepare(net, create_optimizer(net, "integer_madam", 0.02))
    assert isinstance(net, DistributedDataParallel)
    train(net, optimizer)
    same_codes(net.module, alone("lns10"))


def trainer() -> None:
    """Every rank has the same codes, and what is saved is what they are."""
    args = arguments(FOLDER / "trainer", optim="integer_madam", learning_rate=0.02)
    made = RelOptTrainer(gpt2(), args, train_dataset=rows(64), lns_format="lns8")
    made.train()
    made.save_model()
    weight = made.model.transformer.wte.weight
    each = [torch.empty_like(weight.packed) for _ in range(dist.get_world_size())]
    dist.all_gather(each, weight.packed)
    assert all(torch.equal(own, weight.packed) for own in each)
    start = compress(gpt2(), "lns8").transformer.wte.weight
    assert not torch.equal(weight.packed, start.packed)
    loaded = GPT2LMHeadModel.from_pretrained(FOLDER / "trainer")
    assert torch.equal(loaded.transformer.wte.weight.packed, weight.packed)


def ddp_in_8_bits() -> None:
    ddp("lns8")


def ddp_in_10_bits() -> None:
    ddp("lns10")


def fsdp2_in_8_bits() -> None:
    fsdp2("lns8")


def fsdp2_in_10_bits() -> None:
    fsdp2("lns10")


def fsdp2_in_12_bits() -> None:
    fsdp2("lns12")


CHECKS: list[Callable[[], None]] = [
    ddp_in_8_bits,
    ddp_in_10_bits,
    fsdp2_in_8_bits,
    fsdp2_in_10_bits,
    fsdp2_in_12_bits,
    ddp_of_other_weights,
    bytes_of_a_gather,
    mixed_precision,
    full_tensors_are_numbers,
    accelerate_loop,
    trainer,
    accelerates_fsdp2_is_refused,
]

if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    dist.init_process_group("gloo")
    run_checks(CHECKS, sys.argv[2:])
