"""Whole matrices, each worked on by one rank.

Ranks run one after the other here; tests/distributed/framed.py has the step on real ones.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hf_relopt.sharding.layout import Shards
from hf_relopt.sharding.matrices import Matrix, owners, transform_full, world_size
from tests.sharding.one_of_many import Replay, as_rank
from tests.tensors import gradient


@given(st.lists(st.floats(0, 100), max_size=12), st.integers(1, 5))
def test_the_load_is_balanced_and_every_rank_names_the_same_owners(
    work: list[float], ranks: int
) -> None:
    chosen = owners(work, ranks)
    assert chosen == owners(list(work), ranks) and len(chosen) == len(work)
    assert all(0 <= rank < ranks for rank in chosen)
    load = [sum(w for w, rank in zip(work, chosen, strict=True) if rank == r) for r in range(ranks)]
    # The largest first: no rank has more than the one with least by more than one matrix.
    for rank in range(ranks):
        own = [w for w, r in zip(work, chosen, strict=True) if r == rank]
        assert not own or load[rank] - min(own) <= min(load) + 1e-9
    if len(work) >= ranks and min(work, default=0) > 0:
        assert set(chosen) == set(range(ranks)), "a rank has nothing to do"


@st.composite
def matrices(draw: st.DrawFn) -> tuple[int, list[tuple[str, int, tuple[int, ...]]]]:
    """Ranks, and of each matrix: cut, shared or plain, along which dimension, and its shape."""
    each = st.tuples(
        st.sampled_from(["cut", "shared", "plain"]),
        st.integers(0, 1),
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
    )
    return draw(st.integers(1, 4)), draw(st.lists(each, min_size=1, max_size=5))


@given(matrices())
# A rank has several of each kind, of different sizes, among which one has nothing of its part.
@example((2, [("shared", 0, (4, 3)), ("shared", 0, (2, 3)), ("shared", 0, (2, 2))]))
@example((3, [("cut", 0, (4, 3)), ("cut", 1, (2, 5)), ("cut", 0, (1, 2)), ("cut", 0, (2, 2))]))
@example((2, [("plain", 0, (2, 2)), ("cut", 1, (3, 3)), ("shared", 0, (2, 3)), ("cut", 0, (3, 1))]))
def test_each_matrix_is_transformed_whole_by_one_rank_and_every_part_comes_back(
    drawn: tuple[int, list[tuple[str, int, tuple[int, ...]]]],
) -> None:
    ranks, given = drawn
    full = [gradient(torch.empty(shape), n) for n, (_, _, shape) in enumerate(given)]
    worked: dict[int, list[int]] = {}

    def cut_at(rank: int, dim: int, shape: tuple[int, ...]) -> Shards:
        part = -(-shape[dim] // ranks)
        sizes = tuple(min(part, max(0, shape[dim] - r * part)) for r in range(ranks))
        return Shards("world", rank, dim, sizes)

    def parts_of(rank: int, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        parts = []
        for tensor, (how, dim, shape) in zip(tensors, given, strict=True):
            sizes = cut_at(rank, dim, shape).sizes
            parts.append(tensor.split(sizes, dim)[rank] if how == "cut" else tensor)
        return parts

    def work(rank: int) -> list[torch.Tensor]:
        def transform(numbers: list[int], whole: list[torch.Tensor]) -> list[torch.Tensor]:
            worked[rank] = list(numbers)
            assert all(w.shape == full[n].shape for n, w in zip(numbers, whole, strict=True))
            received.update(zip(numbers, whole, strict=True))
            return [tensor * 2 + number for number, tensor in zip(numbers, whole, strict=True)]

        return transform_full(
            [
                Matrix(
                    part,
                    torch.Size(shape),
                    cut_at(rank, dim, shape) if how == "cut" else None,
                    float(torch.Size(shape).numel()),
                    how == "shared",
                )
                for part, (how, dim, shape) in zip(parts_of(rank, full), given, strict=True)
            ],
            transform,
        )

    received: dict[int, torch.Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        replay = Replay(ranks, patch)
        found = replay.run(work, 4)
        groups = {how for how, _, _ in given} - {"plain"}
    for number, (how, _, _) in enumerate(given):
        assert torch.equal(received[number], full[number]), "the whole is not what was cut"
        times = sum(numbers.count(number) for numbers in worked.values())
        assert times == (ranks if how == "plain" else 1)
    expected = [tensor * 2 + number for number, tensor in enumerate(full)]
    for rank, parts in enumerate(found):
        for part, mine in zip(parts, parts_of(rank, expected), strict=True):
            assert torch.equal(part, mine)
    # Two all-to-all for what is cut, one all-gather for copies, however many they are.
    shared = "shared" in groups and ranks > 1
    assert replay.calls == 2 * ("cut" in groups) + shared


def test_a_process_alone_has_everything_to_do() -> None:
    assert world_size() == 1
    one = Matrix(torch.ones(2, 3), torch.Size((2, 3)), None, 1.0, replicated=True)
    called: list[list[int]] = []

    def transform(numbers: list[int], whole: list[torch.Tensor]) -> list[torch.Tensor]:
        called.append(list(numbers))
        return [2 * each for each in whole]

    assert torch.equal(transform_full([one, one], transform)[1], torch.full((2, 3), 2.0))
    assert called == [[0, 1]]
    with as_rank(1, (3,)):
        assert world_size() == 3
