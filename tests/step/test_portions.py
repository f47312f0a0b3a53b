"""Portions: how much goes through the pipeline at once, and that every rank cuts alike."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_relopt import Fromage
from hf_relopt.step import portions as cutting
from hf_relopt.step.bundle import Bundle
from hf_relopt.step.lineup import Slots
from tests.tensors import Optimizer, gradient, same_bits, state_of

WAYS: tuple[dict[str, Any], ...] = (
    {"direction": "momentum"}, {"direction": "adam"}, {"direction": "momentum", "scale": "row"},
)  # fmt: skip


def bundles_of(
    sizes: list[int], ways: list[int], sharded: frozenset[int] = frozenset(), **options: Any
) -> tuple[Bundle, ...]:
    """Bundles of matrices of so many rows; ``sharded`` ones are taken for parts of larger ones."""
    groups = [
        {"params": [nn.Parameter(torch.ones(rows, 2))], **WAYS[way], **options}
        for rows, way in zip(sizes, ways, strict=True)
    ]
    optimizer = Fromage(groups)
    slots = Slots(optimizer.param_groups, optimizer.state)
    for slot in slots.all:
        if slot.number in sharded:
            shape = torch.Size((2 * slot.layout.shape[0], 2))
            slot.layout = replace(slot.layout, sharded=True, shape=shape, shards=2)
    numbers = [type(each)(_in_order(each.slots)) for each in slots._numbers]
    (only,) = numbers
    return tuple(
        Bundle(only, begin, end) for begin, end in _runs([slot.key for slot in only.slots])
    )


def _in_order(slots: Any) -> list[Any]:
    """By what they have in common, as the lineup has them."""
    keys = list(dict.fromkeys(slot.key for slot in slots))
    return sorted(slots, key=lambda slot: (keys.index(slot.key), slot.number))


def _runs(keys: list[Any]) -> list[tuple[int, int]]:
    begins = [n for n, key in enumerate(keys) if n == 0 or key != keys[n - 1]]
    return list(zip(begins, [*begins[1:], len(keys)], strict=True))


def numbers_of(portion: cutting.Portion) -> list[int]:
    return sorted(slot.number for bundle in portion.bundles for slot in bundle.slots)


rows_and_ways = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, len(WAYS) - 1)), min_size=1, max_size=8
)


@given(rows_and_ways, st.integers(1, 30))
def test_every_slot_is_in_one_portion_and_none_holds_too_much(
    each: list[tuple[int, int]], limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_PORTION", limit)
        found = cutting.portions(bundles_of([rows for rows, _ in each], [way for _, way in each]))
    members = list(map(numbers_of, found))
    assert [number for some in members for number in some] == list(range(len(each)))
    for some in members:
        entries = sum(2 * each[number][0] for number in some)
        assert entries <= limit or len(some) == 1
    # No more portions than there must be: what comes next would not have fitted.
    for some, after in itertools.pairwise(members):
        assert sum(2 * each[number][0] for number in [*some, after[0]]) > limit
    assert all(bundle.method == bundle.slots[0].method for some in found for bundle in some.bundles)


@given(rows_and_ways, st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)), st.integers(2, 30))
def test_sharded_weights_are_cut_alike_whatever_plain_ones_have_gradients(
    each: list[tuple[int, int]], sharded: set[int], absent: set[int], limit: int
) -> None:
    """A collective must begin at the same place on a rank that has seen fewer experts."""

    def cut(numbers: list[int]) -> list[list[int]]:
        """Portions of sharded weights, by their numbers in the whole."""
        parts = frozenset(place for place, number in enumerate(numbers) if number in sharded)
        found = cutting.portions(
            bundles_of([each[n][0] for n in numbers], [each[n][1] for n in numbers], parts)
        )
        kinds = [{bundle.layout.sharded for bundle in some.bundles} for some in found]
        assert all(len(kind) == 1 for kind in kinds), "mixed"
        assert kinds == sorted(kinds, key=lambda kind: not max(kind)), "sharded ones come first"
        return [
            [numbers[place] for place in numbers_of(some)]
            for some, kind in zip(found, kinds, strict=True)
            if True in kind
        ]

    everyone = list(range(len(each)))
    here = [number for number in everyone if number in sharded or number not in absent]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_PORTION", limit)
        assert cut(everyone) == (cut(here) if here else [])


@pytest.mark.parametrize(("processes", "entries", "share_work", "expected"), [
    (4, 16_000, False, 100), (4, 16_000, True, 400), (4, 1_600, True, 200), (4, 80, True, 100),
    (1, 16_000, True, 100),
])  # fmt: skip
def test_processes_that_share_the_work_get_one_portion_each_up_to_an_eighth(
    processes: int, entries: int, share_work: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "_PORTION", 100)
    monkeypatch.setattr(cutting, "world_size", lambda: processes)
    bundles = bundles_of([2, 3], [0, 0], share_work=share_work)
    assert cutting._copies_at_once(bundles, entries) == expected


@pytest.mark.parametrize(("device", "entries", "expected"), [
    ("cpu", 2**20, 2**22), ("cpu", 2**28, 2**24), ("cpu", 2**32, 2**26),
    ("cuda", 2**20, 2**24), ("cuda", 2**28, 2**25), ("cuda", 2**32, 2**26),
])  # fmt: skip
def test_of_a_small_model_a_device_has_a_part_at_hand(
    device: str, entries: int, expected: int
) -> None:
    """So that directions take no more than a quarter of the weights."""
    (bundle,) = bundles_of([2], [0])
    bundle.slots[0].device = torch.device(device)
    assert cutting._copies_at_once([bundle], entries) == expected


def test_of_a_sharded_weight_the_largest_shard_counts() -> None:
    (bundle,) = bundles_of([3], [0], frozenset({0}))
    slot = bundle.slots[0]
    assert cutting._entries(slot) == 6
    slot.layout = replace(slot.layout, shape=torch.Size((7, 3)), shards=2)
    assert cutting._entries(slot) == 11, "21 entries over two ranks"


def made() -> tuple[list[nn.Parameter], Optimizer]:
    shapes = ((6, 4), (5,), (3, 4), (2, 2, 2), (6, 4), (4,))
    params = [nn.Parameter(gradient(torch.empty(s), n, 0.1)) for n, s in enumerate(shapes)]
    groups = [
        {"params": [param], **WAYS[number % len(WAYS)]} for number, param in enumerate(params)
    ]
    return params, Fromage(groups, lr=0.1)


@pytest.mark.parametrize("limit", [1, 30])
def test_a_step_in_portions_is_the_step_at_once(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for portion in (cutting._PORTION, limit):
        monkeypatch.setattr(cutting, "_PORTION", portion)
        params, optimizer = made()
        for number in range(1, 5):
            for place, param in enumerate(params):
                given = place != number
                param.grad = gradient(param, 10 * number + place) if given else None
            optimizer.step()
        ends.append((params, optimizer))
    (params, optimizer), (others, other) = ends
    for param, twin in zip(params, others, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert same_bits(param, twin)
        assert all(same_bits(mine[name], theirs[name]) for name in mine)
