"""Slots: what is worked out once of a weight, its slices above all, however its shard lies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_relopt import ConfigError, Fromage
from hf_relopt.backends.part import pieces
from hf_relopt.options.method import Method, method_of
from hf_relopt.sharding.layout import Layout
from hf_relopt.step.slot import Slot, refuse_gradient, slices_of, slot_of


def group_of(param: nn.Parameter, **options: Any) -> dict[str, Any]:
    return Fromage([("weight", param)], **options).param_groups[0]


def counted(shape: tuple[int, ...]) -> torch.Tensor:
    """A full tensor whose entries say where they are in it, row by row."""
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


def slot_at(full: torch.Tensor, method: Method, begins: list[int], shape: list[int]) -> Slot:
    """The slot of a shard, without the ranks that hold the others."""
    shard = full
    for dim, (begin, length) in enumerate(zip(begins, shape, strict=True)):
        shard = shard.narrow(dim, begin, length)
    shard = shard.contiguous()
    layout = Layout(full.shape, shard.shape, tuple(begins) if shard.numel() else (0,) * full.dim())
    slices = slices_of(method, layout)
    return Slot(0, shard, {}, {}, method, layout, slices, shard.device, shard.dtype)


@st.composite
def cut_weights(draw: st.DrawFn) -> tuple[str, torch.Tensor, Method, int, list[int], list[int]]:
    """A scale, a full tensor, its method, the dimension of its slices, and where a shard lies."""
    scale = draw(st.sampled_from(["tensor", "row", "blocks", "equal blocks", "experts"]))
    dims = 3 if scale == "experts" else draw(st.integers(2, 3)) if scale != "tensor" else 2
    shape = [draw(st.integers(2, 6)) for _ in range(dims)]
    options: dict[str, Any] = {"scale": "block", "direction": "momentum"}
    dim = 0
    if scale in ("tensor", "row"):
        options["scale"] = scale
    elif scale != "experts":
        dim = draw(st.integers(0, 1)) if dims == 2 else 0
        options["split_dim"] = dim
        if scale == "blocks":
            sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
            shape[dim], options["split_sizes"] = sum(sizes), tuple(sizes)
        else:
            count = draw(st.integers(1, 3))
            shape[dim], options["split_sizes"] = count * draw(st.integers(1, 3)), count
    full = counted(tuple(shape))
    if sum(length > 1 for length in shape) < 2:
        options = {"direction": "momentum"}  # a vector has no slices
        scale, dim = "tensor", 0
    param = nn.Parameter(full.float())
    method = method_of(group_of(param, **options), param)
    begins, lengths = [0] * dims, list(shape)
    if draw(st.booleans()):
        # Rows are sharded along the first dimension, everything else along any.
        along = 0 if scale == "row" else draw(st.integers(0, dims - 1))
        begins[along] = draw(st.integers(0, shape[along]))
        lengths[along] = draw(st.integers(0, shape[along] - begins[along]))
    return method.scale, full, method, dim, begins, lengths


@given(cut_weights(), st.integers(1, 9))
def test_views_are_the_slices_of_the_full_tensor_wherever_a_shard_lies(
    drawn: tuple[str, torch.Tensor, Method, int, list[int], list[int]], size: int
) -> None:
    """Each entry of the shard is in one view, in the slice it is in, and knows its position."""
    scale, full, method, dim, begins, lengths = drawn
    slot = slot_at(full, method, begins, lengths)
    first = 100
    views = slot.views(first)
    seen: list[int] = []
    along = full.shape[dim]
    if scale == "block":
        ends = torch.tensor(method.blocks(full.shape)).cumsum(0)
    for view in views:
        part = view.of(slot.param)
        assert tuple(part.shape) == view.shape and part.numel() == view.numel
        assert part.numel() == 0 or part.untyped_storage().data_ptr() == (
            slot.param.untyped_storage().data_ptr()
        )
        for piece in pieces((part,), view, size):
            entries = piece.tensors[0].reshape(piece.count, -1).long()
            assert torch.equal(piece.positions().long().reshape(piece.count, -1), entries)
            inner = full[0].numel() if dim == 0 else 1
            index = entries // inner % along  # along the dimension that is cut
            owners = torch.arange(piece.first, piece.first + piece.count)[:, None] - first
            if scale == "row":
                assert torch.equal(index - begins[0], owners.expand_as(index))
            elif scale == "block":
                # torch warns, once in a process, of values that are not contiguous.
                found = torch.searchsorted(ends, index.contiguous(), right=True)
                assert torch.equal(found, owners.expand_as(index))
            else:
                assert (owners == 0).all()
            seen += entries.flatten().tolist()
    assert sorted(seen) == sorted(slot.param.long().flatten().tolist())
    assert sum(view.count for view in views) == slot.slices.count


@given(cut_weights())
def test_slices_count_the_entries_of_the_full_tensor(
    drawn: tuple[str, torch.Tensor, Method, int, list[int], list[int]],
) -> None:
    scale, full, method, dim, begins, lengths = drawn
    slices = slot_at(full, method, begins, lengths).slices
    if scale == "tensor":
        assert slices.numels == (full.numel(),)
    elif scale == "row":
        assert slices.numels == (full[0].numel(),) * lengths[0]
    else:
        parts = full.split(method.blocks(full.shape), dim)
        assert slices.numels == tuple(part.numel() for part in parts)
        assert slices.sizes == tuple(part.shape[dim] for part in parts) and slices.dim == dim


@pytest.mark.parametrize(("shape", "options", "views"), [
    ((6, 4), {}, [("whole", 1)]),
    ((6, 4), {"scale": "row"}, [("whole", 6)]),
    ((6, 4), {"scale": "block", "split_sizes": 3}, [("split", 3)]),
    ((6, 4), {"scale": "block", "split_sizes": (2, 2), "split_dim": 1}, [("split", 2)]),
    ((6, 4), {"scale": "block", "split_sizes": 1}, [("split", 1)]),
    ((6, 4), {"scale": "block", "split_sizes": (4, 2)}, [("narrow", 1)] * 2),
    ((6, 4), {"scale": "block", "split_sizes": (1, 3), "split_dim": 1}, [("narrow", 1)] * 2),
    ((6, 4), {"scale": "block", "split_sizes": 6}, [("whole", 6)]),
    ((3, 4, 2), {"scale": "block"}, [("whole", 3)]),
    ((0, 4, 2), {"scale": "block"}, []),
    ((5,), {"direction": "momentum", "scale": "row"}, [("whole", 1)]),
    ((), {"direction": "momentum"}, [("whole", 1)]),
], ids=str)  # fmt: skip
def test_few_views_are_made(
    shape: tuple[int, ...], options: dict[str, Any], views: list[tuple[str, int]]
) -> None:
    """Where a view can tell slices apart, it is one for all: a backend works on it at once."""
    param = nn.Parameter(torch.ones(shape))
    slot = slot_of(0, param, group_of(param, **options), {})
    found = [
        ("split" if view.split else "narrow" if view.narrow else "whole", view.count)
        for view in slot.views(0)
    ]
    assert found == views
    assert [view.first for view in slot.views(7)] == [
        7 + sum(count for _, count in views[:place]) for place in range(len(views))
    ]


def test_a_slot_knows_its_name_by_its_group() -> None:
    named, plain = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    one = slot_of(3, named, group_of(named), {})
    assert one.name == "weight"
    group = Fromage([nn.Parameter(torch.ones(2)), plain]).param_groups[0]
    assert slot_of(3, plain, group, {}).name == "parameter 1"


def test_what_has_one_key_may_be_a_bundle_and_what_has_one_formula_is_decided_together() -> None:
    def slot(shape: tuple[int, ...] = (4, 2), dtype: torch.dtype = torch.float32, **options: Any):  # type: ignore[no-untyped-def]
        param = nn.Parameter(torch.ones(shape, dtype=dtype))
        return slot_of(0, param, group_of(param, **options), {})

    plain, own = slot(), slot(direction="momentum")
    assert slot((3, 3)).key == plain.key and slot((5,)).key == plain.key
    assert slot(dtype=torch.bfloat16).key != plain.key != slot(p_bound=1.0).key
    assert plain.formula != slot(p_bound=1.0).formula, "the method itself decides"
    assert (
        own.formula == slot(direction="spectral", p_bound=2.0, scale="block", split_sizes=2).formula
    )
    for options in ({"min_scale": 0.2}, {"seed": 1}, {"bound": "sphere"}):
        assert own.formula != slot(direction="momentum", **options).formula
    # What the rule runs in decides, and not what the weight is stored in.
    short, wide = (
        slot(dtype=dtype, direction="momentum").formula for dtype in (torch.bfloat16, torch.float64)
    )
    assert own.formula == short != wide
    beside = Fromage([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))],
                     direction="momentum")  # fmt: skip
    matrix, vector = (
        slot_of(n, p, beside.param_groups[0], {})
        for n, p in enumerate(beside.param_groups[0]["params"])
    )
    assert matrix.key != vector.key and matrix.formula != vector.formula


@pytest.mark.parametrize(("grad", "words"), [
    (torch.eye(2).to_sparse(), r"gradient of weight is sparse.*sparse=False"),
    (torch.ones(2, 2, dtype=torch.complex64), r"gradient of weight is complex.*view_as_real"),
], ids=["sparse", "complex"])  # fmt: skip
def test_gradients_that_have_no_norm_of_ours_are_refused(grad: torch.Tensor, words: str) -> None:
    param = nn.Parameter(torch.ones(2, 2))
    slot = slot_of(0, param, group_of(param), {})
    slot.param = type("Weight", (), {"grad": grad})()
    slot.group["params"][0] = slot.param
    with pytest.raises(ConfigError, match=words):
        refuse_gradient(slot)
