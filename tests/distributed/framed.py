"""Fromage as a frame over ranks: started as sharded.py is.

Momenta meet in two all-reduces; spectral directions take two exchanges more, balanced ones one or
two for each iteration, whatever the number of matrices. Only iterations are inexact: they round
differently for other stacks of matrices.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from hf_relopt import Fromage, create_optimizer
from hf_relopt.errors import UnsupportedSetup
from hf_relopt.rules import orthogonalize as polar
from hf_relopt.sharding.layout import layout_of
from hf_relopt.step import portions as cutting
from tests.distributed.ranks import run_checks
from tests.distributed.sharded import compare, cut_both_ways, same_training, train_both, world

# Settings, and how many collectives a step takes.
FRAMED: dict[str, tuple[dict[str, Any], int]] = {
    "momentum": ({"direction": "momentum"}, 2),
    "momentum sphere": ({"direction": "momentum", "bound": "sphere"}, 2),
    "adam": ({"direction": "adam"}, 2),
    "rows": ({"direction": "momentum", "scale": "row", "p_bound": 1.05}, 2),
    "gradient by row": ({"scale": "row"}, 1),
    "spectral": ({"direction": "spectral"}, 4),
    "neurons": ({"direction": "spectral", "beta": 0.9}, 5),
    "rms by row": ({"direction": "rms", "scale": "row"}, 2),
    # Sums of rows or of columns, all of one rank's, meet once in each iteration.
    "sinkhorn": ({"direction": "sinkhorn", "iterations": 3}, 5),
    "factored": ({"direction": "factored"}, 3),
}


def framed(options: dict[str, Any]) -> Any:
    def build(params: list[nn.Parameter], **more: Any) -> Fromage:
        return Fromage(params, 0.03, **options, **more)

    return build


def frames_equal_one_process() -> None:
    # What hangs on the number of ranks is in these two.
    names = FRAMED if dist.get_world_size() == 2 else ("rows", "neurons", "factored")
    for name in names:
        options, collectives = FRAMED[name]
        close = 1e-4 if name in ("spectral", "neurons") else 1e-6
        count = dict(build=framed(options), collectives=collectives, close=close)
        compare(name, world(), [Shard(0)], **count)
        if name in ("momentum", "spectral", "neurons", "sinkhorn", "factored"):
            # Where columns are cut, sums of all entries and sums of rows do not meet at once.
            more = int(name == "factored")
            compare(name, world(), [Shard(1)], **{**count, "collectives": collectives + more})
        if name in ("adam", "rows"):
            compare(name, world(), [Shard(0)], torch.bfloat16, **count)


def low_precision_momentum_has_the_same_bits() -> None:
    options = {"direction": "momentum", "momentum_dtype": "bfloat16"}
    compare("bfloat16", world(), [Shard(0)], torch.bfloat16, build=framed(options), collectives=2)


def replicated_frames_send_nothing() -> None:
    for name, (options, _) in FRAMED.items():
        compare(name, world(), [Replicate()], build=framed(options), collectives=0)


def blocks_lie_across_ranks() -> None:
    """Three blocks of five rows over two or three ranks: no block begins where a part does."""
    mesh = world()
    generator = torch.Generator().manual_seed(0)
    for direction in ("momentum", "spectral", "sinkhorn", "factored"):
        for dim, placement in ((0, Shard(0)), (0, Shard(1)), (1, Shard(0)), (1, Shard(1))):
            shape = (15, 4) if dim == 0 else (4, 15)
            first = torch.randn(shape, generator=generator)
            one = nn.Parameter(first.clone())
            many = nn.Parameter(distribute_tensor(first.clone(), mesh, [placement]))
            options = dict(direction=direction, scale="block", split_dim=dim, split_sizes=(7, 5, 3))
            pair = [Fromage([param], 0.03, **options) for param in (one, many)]
            for _ in range(10):
                one.grad = torch.randn(shape, generator=generator)
                many.grad = distribute_tensor(one.grad.clone(), mesh, [placement])
                for optimizer in pair:
                    optimizer.step()
            torch.testing.assert_close(many.full_tensor(), one, rtol=1e-4, atol=1e-5)
            anchors = [optimizer.state_dict()["state"][0]["anchor_norm"] for optimizer in pair]
            torch.testing.assert_close(anchors[1], anchors[0])
            assert len(anchors[0]) == 3


@contextmanager
def factors_counted(portion: int | None = None) -> Iterator[list[int]]:
    """How many matrices this rank stacks, each time; in portions of so many entries, if given."""
    seen: list[int] = []
    original = polar.orthogonalize

    def counted(stack: torch.Tensor) -> torch.Tensor:
        seen.append(len(stack))
        return original(stack)

    entries = cutting._PORTION if portion is None else portion
    with (
        mock.patch.object(polar, "orthogonalize", counted),
        mock.patch.object(cutting, "_PORTION", entries),
    ):
        yield seen


def the_work_is_spread() -> None:
    """Twelve equal matrices: each rank orthogonalises its share, and only that.

    A plain tensor that one rank alone has a gradient of must not decide where portions begin.
    """
    mesh, ranks = world(), dist.get_world_size()
    params = [
        nn.Parameter(distribute_tensor(torch.randn(6, 5), mesh, [Shard(0)])) for _ in range(12)
    ]
    plain = nn.Parameter(torch.ones(7, 5))
    for param in params:
        param.grad = torch.ones_like(param)
    if dist.get_rank() == 0:
        plain.grad = torch.ones_like(plain)
    six = 6 * params[0].numel() // ranks
    for portion, portions in ((None, 1), (six, 2)):
        with factors_counted(portion) as seen, CommDebugMode() as comm:
            Fromage([plain, *params], direction="spectral").step()
        assert sum(seen) == 12 // ranks + (dist.get_rank() == 0), seen
        assert comm.get_total_counts() == 1 + 3 * portions, comm.get_comm_counts()


def copies_share_the_work() -> None:
    """As under DDP: the same weights and gradients everywhere, each direction made once."""
    ranks = dist.get_world_size()
    shapes = [*[(6, 5)] * 6, (4, 7, 3), (9, 2), (5,), (8, 8)]
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        first = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        one, many = ([nn.Parameter(t.clone()) for t in first] for _ in range(2))
        pair = (
            Fromage(one, direction="spectral"),
            Fromage(many, direction="spectral", share_work=True),
        )
        for _ in range(5):
            for a, c in zip(one, many, strict=True):
                a.grad = torch.randn(a.shape, generator=generator).to(dtype)
                c.grad = a.grad.clone()
            pair[0].step()
            with factors_counted() as seen, CommDebugMode() as comm:
                pair[1].step()
            assert comm.get_total_counts() == 1, comm.get_comm_counts()
            assert 0 < sum(seen) < len(shapes) - 1 if ranks > 1 else True, seen
        for a, c in zip(one, many, strict=True):
            torch.testing.assert_close(
                c, a, rtol=1e-4 if dtype is torch.float32 else 1e-2, atol=1e-5
            )
            every = [torch.empty_like(c) for _ in range(ranks)]
            dist.all_gather(every, c.detach())
            assert all(torch.equal(copy, c) for copy in every), "replicas went apart"


def shared_portions_have_work_for_every_process() -> None:
    """Copies too large for one portion: each process still has a matrix in it, up to an eighth."""
    ranks = dist.get_world_size()
    params = [nn.Parameter(torch.randn(6, 5)) for _ in range(16 * ranks)]
    for param in params:
        param.grad = torch.ones_like(param)
    for count, portions in ((16 * ranks, 16), (8, 8)):
        with factors_counted(params[0].numel()) as seen, CommDebugMode() as comm:
            Fromage(params[:count], direction="spectral", share_work=True).step()
        assert comm.get_total_counts() == portions, comm.get_comm_counts()
        if portions == 16:
            assert seen == [1] * 16, "some process had two matrices of a portion, or none"


def placeholders_are_the_same_on_every_rank() -> None:
    """What a row is held against is the whole table, and the first gradient may be none.

    Seven rows: with three ranks one has a single row, with four tensors some have none.
    """
    mesh, ranks = world(), dist.get_world_size()
    for shape, options in (
        ((7, 16), {"direction": "momentum", "scale": "row"}),
        ((ranks - 1 or 1, 16), {"scale": "row"}),
        ((5, 4, 4), {"direction": "spectral", "scale": "block"}),
    ):
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(shape, generator=generator)
        first[-1] *= 0.01
        first[len(first) // 2] = 0.0 if len(first) > 2 else first[len(first) // 2]
        one = nn.Parameter(first.clone())
        many = nn.Parameter(distribute_tensor(first.clone(), mesh, [Shard(0)]))
        pair = [Fromage([param], 1e-3, **options) for param in (one, many)]
        for step in range(4):
            grad = torch.randn(shape, generator=generator)
            grad[0] = torch.nan if step == 0 else grad[0]
            one.grad, many.grad = grad, distribute_tensor(grad.clone(), mesh, [Shard(0)])
            for optimizer in pair:
                optimizer.step()
        anchors = [optimizer.state_dict()["state"][0]["anchor_norm"] for optimizer in pair]
        found = anchors[1].full_tensor() if isinstance(anchors[1], DTensor) else anchors[1]
        assert torch.equal(found, anchors[0]), (found, anchors[0])
        assert bool((anchors[0] < 0).any()) is (len(first) > 1)
        torch.testing.assert_close(many.full_tensor(), one, rtol=1e-5, atol=1e-6)


def trainable_tokens_take_the_size_of_the_full_table() -> None:
    """PEFT's, beside a sharded table; of two tokens, three ranks have one or none."""
    if find_spec("peft") is None:
        return
    from peft import TrainableTokensConfig, inject_adapter_in_model

    torch.manual_seed(0)
    one = nn.Sequential(OrderedDict(table=nn.Embedding(7, 16), out=nn.Linear(16, 3)))
    one.requires_grad_(False)
    one.table.weight.data[5:] *= 0.05
    config = TrainableTokensConfig(token_indices=[5, 6], target_modules=["table"])
    inject_adapter_in_model(config, one)
    many = fully_shard(copy.deepcopy(one), mesh=world())
    pair = [create_optimizer(model, "fromage_spectral") for model in (one, many)]
    sizes = [optimizer.param_groups[0]["min_scale"] for optimizer in pair]
    assert sizes[0] == sizes[1] != 0.1, sizes
    for step in range(3):
        ids = torch.tensor([[0, 5, 6, 5], [1, 2, 5, 3]])[step % 2]
        for model, optimizer in zip((one, many), pair, strict=True):
            model(ids).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    (expected,), (found,) = (
        [p for p in model.parameters() if p.requires_grad] for model in (one, many)
    )
    assert isinstance(found, DTensor)
    torch.testing.assert_close(found.full_tensor(), expected, rtol=1e-5, atol=1e-6)


def whole_experts_stay_where_they_are() -> None:
    """Five experts, cut by expert: no rank needs another's."""
    mesh = world()
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(5, 4, 3, generator=generator)
    for direction in ("spectral", "sinkhorn", "factored"):
        _experts_stay(direction, mesh, generator, first)


def _experts_stay(
    direction: str, mesh: DeviceMesh, generator: torch.Generator, first: torch.Tensor
) -> None:
    one = nn.Parameter(first.clone())
    many = nn.Parameter(distribute_tensor(first.clone(), mesh, [Shard(0)]))
    frozen = nn.Parameter(
        distribute_tensor(first[0].clone(), mesh, [Shard(0)]), requires_grad=False
    )
    options = dict(direction=direction, scale="block")
    pair = Fromage([one], 0.03, **options), Fromage([many], 0.03, **options)
    pair[1].add_param_group({"params": [frozen], "scale": "tensor"})
    for step in range(5):
        one.grad = torch.randn(first.shape, generator=generator)
        one.grad[step] = 0.0  # an expert without tokens
        many.grad = distribute_tensor(one.grad.clone(), mesh, [Shard(0)])
        pair[0].step()
        with CommDebugMode() as comm:
            pair[1].step()
        assert comm.get_total_counts() == 2, comm.get_comm_counts()
    torch.testing.assert_close(many.full_tensor(), one, rtol=1e-5, atol=1e-6)
    assert frozen not in pair[1].state, "what is not trained has no state"


def spectral_models_train_alike() -> None:
    same_training("fromage_spectral")


def hsdp_exchanges_over_shards_only() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for name in ("rows", "spectral", "factored"):
        options, collectives = FRAMED[name]
        compare(
            name,
            mesh,
            [Replicate(), Shard(0)],
            build=framed(options),
            collectives=collectives,
            close=1e-4,
        )


def tensor_parallel_matrices_are_refused() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    param = nn.Parameter(distribute_tensor(torch.randn(8, 8), mesh, [Shard(0), Shard(1)]))
    param.grad = torch.ones_like(param)
    before = param.to_local().clone()
    optimizer = Fromage([param], direction="spectral")
    try:
        optimizer.step()
    except UnsupportedSetup as error:
        assert "tensor parallelism" in str(error)
    else:
        raise AssertionError("a matrix cut over two mesh dimensions was taken")
    assert torch.equal(param.to_local(), before) and not optimizer.state
    assert isinstance(param, DTensor)
    # The other directions are exact there.
    compare(
        "momentum",
        mesh,
        [Shard(0), Shard(1)],
        build=framed({"direction": "momentum"}),
        collectives=4,
    )
    # Sums of rows meet over one of the two groups, sums of columns over the other.
    compare(
        "sinkhorn",
        mesh,
        [Shard(0), Shard(1)],
        build=framed({"direction": "sinkhorn", "iterations": 3}),
        collectives=4 + 2 * 3,
        close=1e-6,
    )
    compare(
        "factored",
        mesh,
        [Shard(0), Shard(1)],
        build=framed({"direction": "factored"}),
        collectives=4 + 3,
        close=1e-6,
    )


def rows_are_whole_under_fsdp_with_tensor_parallelism() -> None:
    """An embedding that both cut by rows: FSDP2 marks that with a placement of its own."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    torch.manual_seed(0)
    one = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 4), nn.Tanh())
    plan = {
        "0": RowwiseParallel(input_layouts=Replicate()),
        "1": ColwiseParallel(),
        "2": RowwiseParallel(),
    }
    many = cut_both_ways(one, plan, mesh)
    assert "_StridedShard" in str(many[0].weight.placements)

    def tokens(generator: torch.Generator) -> torch.Tensor:
        return torch.randint(11, (8,), generator=generator)  # not all: the others' rows rest

    pair = train_both(one, many, "fromage_momentum", mesh, tokens)
    weight, (whole, own) = many[0].weight, [each.state_dict()["state"][0] for each in pair]
    torch.testing.assert_close(own["anchor_norm"].full_tensor(), whole["anchor_norm"])
    # Noise and blocks go by where a part begins.
    part, layout = weight.to_local(), layout_of(weight)
    assert not layout.is_whole and len(part) in (2, 3)
    assert torch.equal(weight.full_tensor()[layout.offset[0] :][: len(part)], part)


ON_ANY = (
    frames_equal_one_process,
    low_precision_momentum_has_the_same_bits,
    replicated_frames_send_nothing,
    blocks_lie_across_ranks,
    the_work_is_spread,
    copies_share_the_work,
    shared_portions_have_work_for_every_process,
    placeholders_are_the_same_on_every_rank,
    trainable_tokens_take_the_size_of_the_full_table,
    whole_experts_stay_where_they_are,
    spectral_models_train_alike,
)
ON_FOUR = (
    hsdp_exchanges_over_shards_only,
    tensor_parallel_matrices_are_refused,
    rows_are_whole_under_fsdp_with_tensor_parallelism,
)
# Three ranks cut everything unevenly; what does not hang on that is seen on two.
ON_THREE = (
    frames_equal_one_process,
    blocks_lie_across_ranks,
    the_work_is_spread,
    copies_share_the_work,
    shared_portions_have_work_for_every_process,
    placeholders_are_the_same_on_every_rank,
    trainable_tokens_take_the_size_of_the_full_table,
)
CHECKS = {2: ON_ANY, 3: ON_THREE, 4: ON_FOUR}


def main() -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    size = int(sys.argv[1])
    assert dist.get_world_size() == size
    run_checks(CHECKS[size], sys.argv[2:])


if __name__ == "__main__":
    main()
