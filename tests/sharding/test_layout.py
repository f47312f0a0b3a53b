"""Layouts: what of a weight lies on a rank.

tests/distributed/sharded.py steps such weights on ranks that communicate.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from hf_relopt import Fromage, UnsupportedSetup
from hf_relopt.sharding.layout import (
    Layout,
    as_rows_of,
    is_sharded,
    layout_of,
    local,
    local_grad,
    refuse_inexact,
    rows_are_whole,
    shards_of,
    zeros_along,
)
from hf_relopt.step.lineup import Slots
from hf_relopt.step.slot import refuse_unfit
from tests.sharding.one_of_many import as_rank, sharded

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)


@given(shapes, st.integers(1, 4), st.integers(0, 2))
def test_the_shards_of_all_ranks_are_the_tensor(
    shape: tuple[int, ...], ranks: int, dim: int
) -> None:
    full = torch.arange(torch.Size(shape).numel()).view(shape)
    dim = dim % full.dim()
    seen = torch.zeros_like(full)
    for rank in range(ranks):
        with as_rank(rank, (ranks,)) as mesh:
            param = sharded(full, mesh, [Shard(dim)])
            layout, cut = layout_of(param), shards_of(param, "weight")
        part = full
        for along, (begin, length) in enumerate(
            zip(layout.offset, layout.local_shape, strict=True)
        ):
            part = part.narrow(along, begin, length)
        assert torch.equal(part, local(param))
        seen[tuple(slice(b, b + n) for b, n in zip(layout.offset, part.shape, strict=True))] += 1
        assert layout.sharded and layout.shards == ranks and layout.shape == full.shape
        assert len(layout.groups) == (ranks > 1) and (cut is None) == (ranks == 1)
        assert layout.rows_are_whole == (dim == 0)
        if cut is not None:
            assert (cut.rank, cut.dim, sum(cut.sizes)) == (rank, dim, shape[dim])
            assert cut.sizes[rank] == layout.local_shape[dim] and cut.group is layout.groups[0]
    assert (seen == 1).all(), "an entry is on two ranks, or on none"


@given(shapes)
def test_a_plain_tensor_is_whole(shape: tuple[int, ...]) -> None:
    param = nn.Parameter(torch.ones(shape))
    assert layout_of(param) == Layout(param.shape, param.shape, (0,) * param.dim())
    assert layout_of(param).is_whole and not layout_of(param).groups
    assert shards_of(param, "weight") is None and rows_are_whole(param)
    assert local(param) is param and not is_sharded(param)
    assert as_rows_of(param, rows := torch.ones(shape[0])) is rows


@pytest.mark.parametrize("rank", range(4))
def test_over_two_dimensions_of_a_mesh_only_the_cut_ones_count(rank: int) -> None:
    full = torch.arange(48.0).view(6, 8)
    with as_rank(rank, (2, 2)) as mesh:
        hybrid = layout_of(sharded(full, mesh, [Replicate(), Shard(0)]))
        both_param = sharded(full, mesh, [Shard(1), Shard(0)])
        both = layout_of(both_param)
        assert hybrid.groups == (mesh.get_group(1),) and hybrid.shards == 2
        assert both.groups == (mesh.get_group(0), mesh.get_group(1)) and both.shards == 4
        assert (both.rows_are_whole, hybrid.rows_are_whole) == (False, True)
        assert hybrid.offset == (3 * (rank % 2), 0)
        assert both.offset == (3 * (rank % 2), 4 * (rank // 2)) and both.local_shape == (3, 4)
        with pytest.raises(UnsupportedSetup, match=r"weight is sharded over 2.*momentum"):
            shards_of(both_param, "weight")
        replicated = sharded(full, mesh, [Replicate(), Replicate()])
        assert shards_of(replicated, "weight") is None and layout_of(replicated).is_whole
        assert not layout_of(replicated).groups and layout_of(replicated).sharded


def takes_part(param: torch.Tensor) -> bool:
    optimizer = Fromage([param])
    return bool(Slots(optimizer.param_groups, optimizer.state).taking_part().bundles)


def test_a_sharded_weight_takes_part_whatever_this_rank_has_seen() -> None:
    with as_rank(1, (2,)) as mesh:
        param = nn.Parameter(sharded(torch.ones(4, 2), mesh, [Shard(0)]))
        assert takes_part(param) and torch.equal(local_grad(param), torch.zeros(2, 2))
        param.grad = sharded(torch.arange(8.0).view(4, 2), mesh, [Shard(0)])
        assert torch.equal(local_grad(param), torch.arange(4.0, 8.0).view(2, 2))
        frozen = nn.Parameter(sharded(torch.ones(4, 2), mesh, [Shard(0)]), requires_grad=False)
        assert not takes_part(frozen)
    plain = nn.Parameter(torch.ones(2))
    assert not takes_part(plain)
    plain.grad = torch.ones(2)
    assert takes_part(plain) and local_grad(plain) is plain.grad


def test_numbers_of_rows_lie_where_the_rows_do_and_are_aliases() -> None:
    with as_rank(1, (3,)) as mesh:
        param = sharded(torch.ones(7, 2), mesh, [Shard(0)])
        own = torch.arange(3.0)
        rows = as_rows_of(param, own)
        assert isinstance(rows, DTensor) and rows.shape == (7,)
        assert rows.placements == (Shard(0),)
        own[1] = 17.0
        assert local(rows).tolist() == [0.0, 17.0, 2.0]
        columns = sharded(torch.ones(7, 3), mesh, [Shard(1)])
        assert as_rows_of(columns, torch.ones(7)).placements == (Replicate(),)


def test_what_no_rank_can_step_is_refused() -> None:
    with as_rank(0, (2,)) as mesh:
        full = torch.ones(4, 4)
        partial = DTensor.from_local(full, mesh, [Partial()], run_check=False)
        with pytest.raises(UnsupportedSetup, match=r"weight is a DTensor of partial sums.*Shard"):
            refuse_inexact(partial, full.shape, "weight")
        columns = nn.Parameter(sharded(full, mesh, [Shard(1)]))
        group = Fromage([columns], direction="momentum", scale="row").param_groups[0]
        with pytest.raises(UnsupportedSetup, match=r"weight is sharded across its rows.*'tensor'"):
            refuse_unfit(group, columns, "weight")
        rows = nn.Parameter(sharded(full, mesh, [Shard(0)]))
        refuse_inexact(rows, full.shape, "weight")
        refuse_unfit(group, rows, "weight")
    flat = nn.Parameter(torch.ones(4))
    with pytest.raises(UnsupportedSetup, match=r"shape \(4,\).*built with \(2, 2\).*FSDP1"):
        refuse_inexact(flat, torch.Size((2, 2)), "weight")
    flat._fsdp_flattened = True
    with pytest.raises(UnsupportedSetup, match=r"FSDP1's flat parameter.*FSDP2"):
        refuse_inexact(flat, flat.shape, "weight")


def test_offloaded_shards_are_brought_to_where_the_groups_work() -> None:
    tensor = torch.ones(2)
    shape = torch.Size((2,))
    assert Layout(shape, shape, (0,)).reachable(tensor) is tensor
    assert Layout(shape, shape, (0,), reach="cpu").reachable(tensor) is tensor
    assert Layout(shape, shape, (0,), reach="meta").reachable(tensor).device.type == "meta"


def test_zeros_lie_as_the_weight_does_along_the_given_dimensions() -> None:
    with as_rank(1, (3,)) as mesh:
        param = sharded(torch.ones(7, 4), mesh, [Shard(0)])
        rows, columns = zeros_along(param, (7, 1), [0]), zeros_along(param, (2, 4), [1])
        for found, shape, own, placement in (
            (rows, (7, 1), (3, 1), Shard(0)),
            (columns, (2, 4), (2, 4), Replicate()),
        ):
            assert isinstance(found, DTensor) and tuple(found.shape) == shape
            assert tuple(local(found).shape) == own and found.placements == (placement,)
            assert found.dtype is torch.float32 and not local(found).any()
        # As many blocks as there are rows, each rank with a number for all of them.
        assert zeros_along(param, (7, 4), [1]).placements == (Replicate(),)
    plain = zeros_along(torch.ones(7, 4, dtype=torch.bfloat16), (7, 1), [0])
    assert type(plain) is torch.Tensor and plain.shape == (7, 1) and plain.dtype is torch.float32
