"""What ranks do in test_sharded: each check prints its name.

Every check compares with one process that has whole tensors, which each rank is by itself.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from transformers import GPT2Config, GPT2LMHeadModel

from hf_relopt import Fromage, Madam, UnsupportedSetup, create_optimizer
from hf_relopt.plans.plan import build
from tests.cases import HAS_TRITON
from tests.distributed.ranks import run_checks

STEPS = 20
# Uneven rows, fewer rows than ranks, one entry, a stack of matrices, and one that starts at zero.
SHAPES = ((7, 5), (13,), (2, 3), (1,), (5, 4, 3), (6, 9), (9,))
ZERO_START = 6
SETTINGS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "fromage": lambda params, **options: Fromage(params, 0.03, **options),
    "fromage p_bound": lambda params, **options: Fromage(params, 0.03, p_bound=1.05, **options),
    "madam": lambda params, **options: Madam(params, 0.03, **options),
}
Placements = Sequence[Any]


def whole(kind: str, step: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """The same numbers on every rank: weights, or gradients of a step."""
    generator = torch.Generator().manual_seed(1000 * (kind == "grad") + step)
    tensors = [0.1 * torch.randn(shape, generator=generator) for shape in SHAPES]
    if kind == "weight":
        tensors[ZERO_START].zero_()
    return [tensor.to(dtype) for tensor in tensors]


def distribute(tensor: torch.Tensor, mesh: DeviceMesh, placements: Placements) -> DTensor:
    """``tensor`` cut, each dimension that it does not have taken from its last one."""
    fitting = [
        Shard(min(p.dim, tensor.dim() - 1)) if isinstance(p, Shard) else p for p in placements
    ]
    return distribute_tensor(tensor, mesh, fitting)


def world() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def rows_of(tensors: Sequence[torch.Tensor], mesh: DeviceMesh) -> list[nn.Parameter]:
    return [nn.Parameter(distribute(tensor, mesh, [Shard(0)])) for tensor in tensors]


def compare(
    name: str,
    mesh: DeviceMesh,
    placements: Placements,
    dtype: torch.dtype = torch.float32,
    sharded: Callable[[int], bool] = lambda index: True,
    collectives: int = 1,
    build: Callable[..., torch.optim.Optimizer] | None = None,
    close: float = 1e-6,
    steps: int = STEPS,
    **options: Any,
) -> None:
    """Steps on given gradients: whole tensors in one process against cut ones."""
    build = SETTINGS[name] if build is None else build
    alone = [nn.Parameter(tensor) for tensor in whole("weight", 0, dtype)]
    cut = [
        nn.Parameter(distribute(tensor, mesh, placements) if sharded(index) else tensor.clone())
        for index, tensor in enumerate(whole("weight", 0, dtype))
    ]
    assert sum(isinstance(param, DTensor) for param in cut) == sum(map(sharded, range(len(cut))))
    one, many = build(alone, **options), build(cut, **options)
    for step in range(steps):
        for a, c, grad in zip(alone, cut, whole("grad", step, dtype), strict=True):
            a.grad = grad
            c.grad = distribute(grad, mesh, placements) if isinstance(c, DTensor) else grad.clone()
        one.step()
        # "compiled" runs under no dispatch mode, and a step under one takes several times as long.
        if options.get("backend") == "compiled" or 2 <= step < steps - 1:
            many.step()
            continue
        with CommDebugMode() as comm:
            many.step()
        assert comm.get_total_counts() == collectives, (name, comm.get_comm_counts())
    for index, (a, c) in enumerate(zip(alone, cut, strict=True)):
        found = c.full_tensor() if isinstance(c, DTensor) else c
        if dtype is torch.bfloat16:
            assert torch.equal(found, a), (name, index)
        else:
            torch.testing.assert_close(found.detach(), a.detach(), rtol=close, atol=close / 10)
        assert not torch.equal(a, whole("weight", 0, dtype)[index]), "nothing was trained"


def rows_are_exact() -> None:
    for name in SETTINGS:
        for backend in ("loop", "foreach"):
            compare(name, world(), [Shard(0)], backend=backend)


def compiled_is_exact() -> None:
    from hf_relopt.backends import compiled

    compiled._SMALLEST = 2  # or these tensors would take foreach's way
    # Compilations are most of what this costs; in one process each rule meets both dtypes.
    for name, dtype in (("fromage p_bound", torch.bfloat16), ("madam", torch.float32)):
        compare(name, world(), [Shard(0)], dtype, backend="compiled")


def kernels_are_exact() -> None:
    """In Triton's slow interpreter, around the one all-reduce; columns are walked by strides."""
    if HAS_TRITON:
        for name, placements in (("fromage p_bound", [Shard(0)]), ("madam", [Shard(1)])):
            compare(name, world(), placements, backend="triton", steps=5)


def stochastic_rounding_has_the_same_bits() -> None:
    for name in SETTINGS:
        for placements in ([Shard(0)], [Shard(1)]):
            for backend in ("loop", "foreach"):
                compare(name, world(), placements, torch.bfloat16, backend=backend)


def columns_are_exact() -> None:
    for name in SETTINGS:
        compare(name, world(), [Shard(1)])


def replicated_sends_nothing() -> None:
    for name in SETTINGS:
        compare(name, world(), [Replicate()], collectives=0)


def plain_tensors_beside_sharded_ones() -> None:
    for name in SETTINGS:
        compare(name, world(), [Shard(0)], sharded=lambda index: index % 2 == 0)


def experts_on_a_mesh_of_their_own() -> None:
    """Some tensors are cut over all ranks, others over half of them, each with its collective."""
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "expert"))
    ways = [(world(), [Shard(0)]), (both["expert"], [Shard(0)]), (both["fsdp"], [Shard(0)])]
    weights = whole("weight", 0, torch.float32)
    alone = [nn.Parameter(tensor) for tensor in weights]
    cut = [nn.Parameter(distribute(t, *ways[index % 3])) for index, t in enumerate(weights)]
    one, many = Fromage(alone, 0.03), Fromage(cut, 0.03)
    for step in range(STEPS):
        for index, grad in enumerate(whole("grad", step, torch.float32)):
            alone[index].grad = grad
            cut[index].grad = distribute(grad, *ways[index % 3])
        one.step()
        with CommDebugMode() as comm:
            many.step()
        assert comm.get_total_counts() == 3, comm.get_comm_counts()
    for a, c in zip(alone, cut, strict=True):
        torch.testing.assert_close(c.full_tensor().detach(), a.detach(), rtol=1e-6, atol=1e-7)


def several_groups_one_collective() -> None:
    """Groups, dtypes and rules do not multiply the collectives."""
    mesh = world()
    tensors = whole("weight", 0, torch.float32)
    cut = [nn.Parameter(distribute(tensor, mesh, [Shard(0)])) for tensor in tensors]
    half = [nn.Parameter(distribute(t.bfloat16(), mesh, [Shard(0)])) for t in tensors]
    groups = [
        {"params": cut[:3]},
        {"params": cut[3:], "lr": 0.1},
        {"params": half, "rule": "adamw"},
    ]
    optimizer = Fromage(groups)
    for param in (*cut, *half):
        param.grad = torch.ones_like(param)
    with CommDebugMode() as comm:
        optimizer.step()
    assert comm.get_total_counts() == 1, comm.get_comm_counts()


def a_rank_without_gradients_joins() -> None:
    """Its part of each gradient counts as zero, whatever it was that left it out."""
    mesh, rank = world(), dist.get_rank()
    weights = whole("weight", 0, torch.float32)
    alone = [nn.Parameter(tensor) for tensor in weights]
    cut = rows_of(weights, mesh)
    for name, make in SETTINGS.items():
        one, many = make(alone), make(cut)
        for step in range(3):
            for a, c, grad in zip(alone, cut, whole("grad", step, torch.float32), strict=True):
                held = distribute(grad, mesh, [Shard(0)])
                if rank == 1:
                    held.to_local().zero_()
                a.grad = held.full_tensor()
                c.grad = None if rank == 1 else held
            one.step()
            many.step()
        for a, c in zip(alone, cut, strict=True):
            torch.testing.assert_close(
                c.full_tensor().detach(), a.detach(), rtol=1e-6, atol=1e-7, msg=name
            )


def a_nan_on_one_rank_stops_the_tensor_on_all() -> None:
    mesh = world()
    for make in SETTINGS.values():
        cut = [
            nn.Parameter(distribute(t, mesh, [Shard(0)])) for t in whole("weight", 0, torch.float32)
        ]
        before = [param.full_tensor().clone() for param in cut]
        optimizer = make(cut)
        for param, grad in zip(cut, whole("grad", 0, torch.float32), strict=True):
            param.grad = distribute(grad, mesh, [Shard(0)])
        if dist.get_rank() == dist.get_world_size() - 1:
            cut[0].grad.to_local()[0] = float("nan")
        optimizer.step()
        moved = [not torch.equal(p.full_tensor(), b) for p, b in zip(cut, before, strict=True)]
        assert moved == [False, *[True] * (len(cut) - 1)]
        assert [int(optimizer.state[param]["skipped"]) for param in cut] == [
            1,
            *[0] * (len(cut) - 1),
        ]


def a_step_that_does_nothing_changes_no_bit() -> None:
    """Distributed checkpoints make state by a step with zero gradients and lr = 0."""
    mesh = world()
    for make in SETTINGS.values():
        cut = [
            nn.Parameter(distribute(t, mesh, [Shard(0)])) for t in whole("weight", 0, torch.float32)
        ]
        before = [param.full_tensor().clone() for param in cut]
        optimizer = make(cut)
        for param in cut:
            param.grad = torch.zeros_like(param)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        assert all(torch.equal(p.full_tensor(), b) for p, b in zip(cut, before, strict=True))
        for param in cut:
            for name, value in optimizer.state[param].items():
                assert isinstance(value, DTensor) == (name == "second_moment")


# Slices that ranks share, and rows, of which each rank has some of its own, or none.
IN_SLICES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    scale: lambda params, scale=scale: Fromage(
        [p for p in params if p.dim() > (2 if scale == "block" else 1)],
        0.03,
        direction="momentum",
        scale=scale,
        p_bound=1.01,
    )
    for scale in ("tensor", "row", "block")
}


def telemetry_is_of_whole_tensors() -> None:
    mesh = world()
    for name, make in {**SETTINGS, **IN_SLICES}.items():
        weights = whole("weight", 0, torch.float32)
        alone = [nn.Parameter(tensor) for tensor in weights]
        cut = rows_of(weights, mesh)
        figures = []
        for params in (alone, cut):
            optimizer = make(params)
            for step in range(3):
                for param, grad in zip(params, whole("grad", step, torch.float32), strict=True):
                    held = isinstance(param, DTensor)
                    param.grad = distribute(grad, mesh, [Shard(0)]) if held else grad
                optimizer.measure_next_step()
                with CommDebugMode() as comm:
                    optimizer.step()
                if name in SETTINGS:
                    assert comm.get_total_counts() == (2 if params is cut else 0)
            figures.append(optimizer.take_measurement())
        assert len(figures[0]) > 9 and figures[0].keys() == figures[1].keys()
        for metric, value in figures[0].items():
            assert abs(figures[1][metric] - value) <= 1e-6 * abs(value), (name, metric, figures)


def the_plan_sees_whole_tensors() -> None:
    """Zero-start marks and the default rate must not depend on the part that a rank holds."""
    torch.manual_seed(0)
    for pretrained in (False, True):
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
        with torch.no_grad():
            model[0].weight[:5].zero_()  # all of a rank's part, but not all of the tensor
            model[2].bias.zero_()
            if pretrained:
                model[1].weight[-1] = 2.0  # seen by the last rank alone
        expected = create_optimizer(copy.deepcopy(model), "fromage")
        found = create_optimizer(fully_shard(model), "fromage")
        assert found.param_groups[0]["lr"] == expected.param_groups[0]["lr"]
        assert expected.param_groups[0]["lr"] == (0.001 if pretrained else 0.01)
        plan = build(model, "fromage", 0.01)
        zero = sorted(entry.name for entry in plan.entries if entry.zero_start)
        assert zero == ["1.bias", "2.bias"], zero


# --- real models ------------------------------------------------------------------------------


def gpt2(device: str = "cpu") -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=61,
        n_positions=16,
        n_embd=24,
        n_layer=2,
        n_head=3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device(device):
        return GPT2LMHeadModel(config)


def shard(model: GPT2LMHeadModel, **how: Any) -> GPT2LMHeadModel:
    for block in model.transformer.h:
        fully_shard(block, **how)
    return fully_shard(model, **how)


def batches(step: int) -> torch.Tensor:
    """[6 x ranks, 12] tokens that count upwards: every rank takes its share."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(61, (6 * dist.get_world_size(), 1), generator=generator)
    return (start + torch.arange(12)) % 61


def mine(tokens: torch.Tensor) -> torch.Tensor:
    return tokens[dist.get_rank() :: dist.get_world_size()]


def losses(
    model: nn.Module, optimizer: torch.optim.Optimizer, split: bool, parts: int = 1
) -> Iterator[torch.Tensor]:
    """Train ten steps, each of ``parts`` accumulated ones; yield the loss of the global batch."""
    for step in range(10):
        optimizer.zero_grad()
        total = torch.zeros(())
        for part in range(parts):
            tokens = batches(10 * step + part)
            tokens = mine(tokens) if split else tokens
            loss = model(input_ids=tokens, labels=tokens).loss / parts
            loss.backward()
            total += loss.detach()
        optimizer.step()
        if split:
            dist.all_reduce(total)
            total /= dist.get_world_size()
        yield total


def without_key_bias(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Keys' biases have no gradient but rounding noise, which a normalised step follows."""
    if not name.endswith("c_attn.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def same_training(
    optim: str, parts: int = 1, prepare: Any = None, in_backward: bool = False, **how: Any
) -> None:
    one, many = gpt2(), gpt2()
    if prepare is not None:
        prepare(one)
        prepare(many)
    many = shard(many, **how)
    assert all(isinstance(param, DTensor) for param in many.parameters())
    pair = [
        create_optimizer(one, optim, 0.02),
        create_optimizer(many, optim, 0.02, step_in_backward=in_backward),
    ]
    expected = list(losses(one, pair[0], split=False, parts=parts))
    found = list(losses(many, pair[1], split=True, parts=parts))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert expected[-1] < expected[0]
    whole_names = dict(one.named_parameters())
    for name, param in many.named_parameters():
        ours, theirs = (
            without_key_bias(name, t.detach()) for t in (param.full_tensor(), whole_names[name])
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=f"{optim} {name}")


def fully_shard_trains_alike() -> None:
    for optim in ("fromage", "madam"):
        same_training(optim)


def steps_inside_the_backward_pass_train_alike() -> None:
    for optim in ("madam", "fromage_spectral", "fromage_factored"):
        same_training(optim, in_backward=True)
    same_training("fromage", in_backward=True, offload_policy=CPUOffloadPolicy(pin_memory=False))
    # The norms of each unit that FSDP2 reduces, two blocks and the rest, meet in one all-reduce.
    model = shard(gpt2())
    optimizer = create_optimizer(model, "fromage", 0.02, step_in_backward=True)
    for step in range(2):
        tokens = mine(batches(step))
        loss = model(input_ids=tokens, labels=tokens).loss
        with CommDebugMode() as comm:
            loss.backward()
        assert all(param.grad is None for param in model.parameters())
        reduced = comm.get_comm_counts()[torch.ops.c10d.allreduce_]
        assert reduced == 3, comm.get_comm_counts()
        with CommDebugMode() as comm:
            optimizer.step()
        assert comm.get_total_counts() == 0, comm.get_comm_counts()


def steps_before_ddp_has_averaged_are_refused() -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 3))
    before = model.module.weight.detach().clone()
    optimizer = create_optimizer(model, "fromage", 0.02, step_in_backward=True)
    try:
        model(torch.ones(2, 4)).sum().backward()
    except UnsupportedSetup as error:
        assert "DDP" in str(error) and "FSDP2" in str(error), error
    else:
        raise AssertionError("replicas were stepped by gradients of their own")
    assert torch.equal(model.module.weight, before) and not optimizer.state


def gradient_accumulation_trains_alike() -> None:
    same_training("fromage", parts=2)


def frozen_weights_stay() -> None:
    def freeze(model: nn.Module) -> None:
        model.transformer.wte.requires_grad_(False)
        model.transformer.h[0].requires_grad_(False)

    same_training("madam", prepare=freeze)


def offloaded_weights_train_alike() -> None:
    same_training("fromage", offload_policy=CPUOffloadPolicy(pin_memory=False))


def mixed_precision_trains() -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for optim in ("fromage", "madam"):
        model = shard(gpt2(), mp_policy=policy)
        optimizer = create_optimizer(model, optim, 0.02)
        seen = list(losses(model, optimizer, split=True))
        assert seen[-1] < seen[0] - 0.03, seen
        assert all(param.dtype is torch.float32 for param in model.parameters())


def built_on_meta_trains_alike() -> None:
    one = gpt2()
    many = shard(gpt2("meta"))
    optimizer = create_optimizer(many, "fromage", 0.02)
    many.to_empty(device="cpu")
    with torch.no_grad():
        for param, source in zip(many.parameters(), one.parameters(), strict=True):
            param.copy_(distribute_tensor(source.detach(), param.device_mesh, param.placements))
        for buffer, source in zip(many.buffers(), one.buffers(), strict=True):
            buffer.copy_(source)
    pair = create_optimizer(one, "fromage", 0.02)
    expected = list(losses(one, pair, split=False))
    torch.testing.assert_close(
        list(losses(many, optimizer, split=True)), expected, rtol=1e-4, atol=0
    )


# --- four ranks: two-dimensional meshes -------------------------------------------------------


def hsdp_reduces_over_shards_only() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for name in SETTINGS:
        compare(name, mesh, [Replicate(), Shard(0)])
        compare(name, mesh, [Replicate(), Shard(0)], torch.bfloat16)
    one, many = gpt2(), gpt2()
    many = shard(many, mesh=mesh)
    pair = [create_optimizer(model, "fromage", 0.02) for model in (one, many)]
    expected = list(losses(one, pair[0], split=False))
    found = list(losses(many, pair[1], split=True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def fsdp_with_tensor_parallelism_is_exact() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    for name in SETTINGS:
        compare(name, mesh, [Shard(0), Shard(1)], collectives=2)
        compare(name, mesh, [Shard(0), Shard(1)], torch.bfloat16, collectives=2)
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4), nn.Tanh())
    many = cut_both_ways(one, {"0": ColwiseParallel(), "2": RowwiseParallel()}, mesh)
    for optim in ("fromage", "madam"):
        train_both(one, many, optim, mesh, lambda generator: torch.randn(8, 6, generator=generator))


def cut_both_ways(one: nn.Module, plan: dict[str, ParallelStyle], mesh: DeviceMesh) -> nn.Module:
    """A copy of ``one`` under tensor parallelism and FSDP2, over a mesh of "fsdp" and "tp"."""
    many = copy.deepcopy(one)
    parallelize_module(many, mesh["tp"], plan)
    fully_shard(many, mesh=mesh["fsdp"])
    assert {param.device_mesh.ndim for param in many.parameters()} == {2}
    return many


def train_both(
    one: nn.Module,
    many: nn.Module,
    optim: str,
    mesh: DeviceMesh,
    inputs_of: Callable[[torch.Generator], torch.Tensor],
) -> list[torch.optim.Optimizer]:
    """Ten steps of a model in one process and of its copy over ranks end alike."""
    pair: list[torch.optim.Optimizer] = [
        create_optimizer(each, optim, 0.02) for each in (one, many)
    ]
    row = mesh.get_local_rank("fsdp")
    for step in range(10):
        inputs = inputs_of(torch.Generator().manual_seed(step))
        for model, optimizer, rows in ((one, pair[0], inputs), (many, pair[1], inputs[row::2])):
            optimizer.zero_grad()
            model(rows).square().mean().backward()
            optimizer.step()
    for a, c in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(c.full_tensor().detach(), a.detach(), rtol=1e-5, atol=1e-6)
    return pair


ON_ANY = (
    rows_are_exact,
    stochastic_rounding_has_the_same_bits,
    columns_are_exact,
    replicated_sends_nothing,
    plain_tensors_beside_sharded_ones,
    several_groups_one_collective,
    a_rank_without_gradients_joins,
    a_nan_on_one_rank_stops_the_tensor_on_all,
    a_step_that_does_nothing_changes_no_bit,
    telemetry_is_of_whole_tensors,
    the_plan_sees_whole_tensors,
    fully_shard_trains_alike,
)
ON_TWO = (
    compiled_is_exact,
    kernels_are_exact,
    gradient_accumulation_trains_alike,
    steps_inside_the_backward_pass_train_alike,
    steps_before_ddp_has_averaged_are_refused,
    frozen_weights_stay,
    offloaded_weights_train_alike,
    mixed_precision_trains,
    built_on_meta_trains_alike,
)
ON_FOUR = (
    experts_on_a_mesh_of_their_own,
    hsdp_reduces_over_shards_only,
    fsdp_with_tensor_parallelism_is_exact,
)
CHECKS = {2: (*ON_ANY, *ON_TWO), 3: ON_ANY, 4: ON_FOUR}


def main() -> None:
    warnings.simplefilter("error")
    # torch's own, when torch.compile is imported; as in pyproject.toml.
    warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    size = int(sys.argv[1])
    assert dist.get_world_size() == size
    run_checks(CHECKS[size], sys.argv[2:])


if __name__ == "__main__":
    main()
