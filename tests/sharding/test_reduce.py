"""The one all-reduce: norms of shards become those of full tensors.

Ranks run one after the other here; tests/distributed/sharded.py has the step on real ones.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt.sharding.layout import Layout
from hf_relopt.sharding.reduce import all_reduced, full_norms
from tests.sharding.one_of_many import Replay
from tests.tensors import gradient

SHAPE = torch.Size((6, 4))


def over(*groups: str) -> Layout:
    return Layout(SHAPE, SHAPE, (0, 0), sharded=bool(groups), groups=groups)


def rows_of(weight: torch.Tensor, grad: torch.Tensor, columns: int) -> torch.Tensor:
    """[1, columns]: |U|, |W| and their cosine, as a rank sums them."""
    norms = [grad.norm(), weight.norm()]
    product = norms[0] * norms[1]
    cosine = (weight * grad).sum() / product if product > 0 else torch.zeros((), dtype=weight.dtype)
    return torch.stack([*norms, cosine])[:columns].view(1, -1)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.booleans(), st.integers(1, 3)), min_size=1, max_size=5),
    st.integers(0, 1000),
)
def test_norms_of_shards_become_those_of_the_tensors(
    ranks: int, tensors: list[tuple[bool, int]], seed: int
) -> None:
    """What is on one rank alone, or is no part of anything, stays as it is."""
    full = [[gradient(torch.empty(8, 3).double(), seed + 2 * n + k) for k in range(2)]
            for n in range(len(tensors))]  # fmt: skip
    for weight, grad in full:  # a shard without anything, and rows that differ much in size
        weight[:2], grad[-1] = 0.0, 100 * grad[-1]
    layouts = [over("world") if cut else None for cut, _ in tensors]

    def work(rank: int) -> list[torch.Tensor]:
        rows = []
        for (weight, grad), (cut, columns) in zip(full, tensors, strict=True):
            parts = [each.tensor_split(ranks)[rank] if cut else each for each in (weight, grad)]
            rows.append(rows_of(*parts, columns))
        return full_norms(rows, layouts)

    with pytest.MonkeyPatch.context() as patch:
        replay = Replay(ranks, patch)
        for found in replay.run(work, 2):
            for row, pair, (_, columns) in zip(found, full, tensors, strict=True):
                torch.testing.assert_close(row, rows_of(*pair, columns), rtol=1e-12, atol=1e-15)
        assert replay.calls == any(cut for cut, _ in tensors), "more than one all-reduce"


def test_ranks_may_ask_for_different_sums() -> None:
    """One has just been given anchors, another does not know yet that they are made."""
    weight, grad = (gradient(torch.empty(8, 3).double(), n) for n in (1, 2))

    def work(rank: int) -> torch.Tensor:
        parts = [each.chunk(2)[rank] for each in (weight, grad)]
        (found,) = full_norms([rows_of(*parts, 1 + 2 * rank)], [over("world")])
        return found

    with pytest.MonkeyPatch.context() as patch:
        one, other = Replay(2, patch).run(work, 2)
    assert one.shape == (1, 1) and other.shape == (1, 3)
    assert float(one) == pytest.approx(float(grad.norm()), rel=1e-12)
    assert float(other[0, 0]) == float(one)


def test_there_is_one_all_reduce_for_each_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights together; those that are cut twice take part in both."""
    seen: list[tuple[str, int]] = []

    def all_reduce(tensor: torch.Tensor, group: str) -> None:
        seen.append((group, tensor.numel()))
        tensor.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    sums = [torch.full(shape, float(n)) for n, shape in enumerate([(2, 3), (4,), (1,), (5,)], 1)]
    kept = [each.clone() for each in sums]
    found = all_reduced(sums, [over("fsdp"), over("fsdp", "tp"), over(), over("tp")])
    assert seen == [("fsdp", 10), ("tp", 9)]
    for each, now, before, factor in zip(found, sums, kept, (2, 4, 1, 2), strict=True):
        assert torch.equal(each, factor * before) and torch.equal(now, before)


def test_where_nothing_is_sharded_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: pytest.fail("sent"))
    rows = [torch.ones(2, 3), torch.ones(1, 1)]
    found = full_norms(rows, [over(), None])
    assert all(one is other for one, other in zip(found, rows, strict=True))
