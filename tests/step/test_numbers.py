"""Packed numbers: what the state holds of a weight are aliases of their entries, and stay so."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.step.lineup import Slots
from hf_relopt.step.numbers import Numbers, SomeNumbers
from tests.tensors import Optimizer, gradient, run, same_bits, snapshot, state_of

SHAPES = ((6, 4), (5, 3), (4,), (2, 3, 2), ())
NAMES = ("step", "skipped", "anchor_norm")


def made(**options: Any) -> tuple[list[nn.Parameter], Optimizer]:
    params = [nn.Parameter(gradient(torch.empty(shape), 7, 0.1)) for shape in SHAPES]
    return params, Fromage(params, lr=0.05, **options)


def numbers_of(params: list[nn.Parameter], optimizer: Optimizer) -> Numbers:
    """Those of new slots, which take over the state that there is."""
    (numbers,) = Slots(optimizer.param_groups, optimizer.state)._numbers
    assert [slot.param for slot in sorted(numbers.slots, key=lambda slot: slot.number)] == params
    return numbers


def entries(numbers: Numbers, place: int) -> dict[str, torch.Tensor]:
    slices = slice(numbers.first[place], numbers.first[place + 1])
    return {
        "step": numbers.step[place],
        "skipped": numbers.skipped[place],
        "anchor_norm": numbers.anchor_norm[slices],
    }


@pytest.mark.parametrize("scale", ["tensor", "row"])
def test_state_is_an_alias_of_its_entries_and_no_view(scale: str) -> None:
    params, optimizer = made(direction="momentum", scale=scale)
    run(optimizer, params, (1, 2))
    before = [snapshot(state_of(optimizer, param)[name] for name in NAMES) for param in params]
    numbers = numbers_of(params, optimizer)
    for place, slot in enumerate(numbers.slots):
        mine = entries(numbers, place)
        for name, old in zip(NAMES, before[slot.number], strict=True):
            kept = slot.state[name]
            assert same_bits(kept, old) and kept.shape == old.shape
            assert kept.data_ptr() == mine[name].data_ptr()
            assert kept._base is None, "a compiler would look at what it is a view of"
            mine[name].fill_(17.0)
            assert (kept == 17).all() and kept is optimizer.state[slot.param][name]


def test_slices_follow_each_other_by_their_slots() -> None:
    params, optimizer = made(direction="momentum", scale="row")
    numbers = numbers_of(params, optimizer)
    counts = [slot.slices.count for slot in numbers.slots]
    assert sorted(counts) == [1, 1, 2, 5, 6]  # a vector and a number have one slice
    assert [b - a for a, b in zip(numbers.first, numbers.first[1:], strict=False)] == counts
    owners = [place for place, count in enumerate(counts) for _ in range(count)]
    assert numbers.owner is not None and numbers.owner.tolist() == owners
    per_slice = [n for slot in numbers.slots for n in slot.slices.numels]
    assert numbers.numel.tolist() == per_slice
    assert sum(per_slice) == sum(param.numel() for param in params)
    assert torch.isnan(numbers.anchor_norm).all() and not numbers.step.any()


def test_where_each_slot_has_one_slice_there_are_no_owners() -> None:
    params, optimizer = made()
    assert numbers_of(params, optimizer).owner is None


def test_some_numbers_are_copies_until_they_are_put_back() -> None:
    params, optimizer = made(direction="momentum", scale="row")
    run(optimizer, params, (1,))
    everything = numbers_of(params, optimizer)
    places = [0, 3, 4]
    some = SomeNumbers(everything, places)
    some.fetch()
    others = sorted(set(range(len(everything.slots))) - set(places))
    kept = {place: snapshot(entries(everything, place).values()) for place in others}
    for own, place in enumerate(places):
        mine, theirs = entries(some, own), entries(everything, place)
        for name in NAMES:
            assert same_bits(mine[name], theirs[name])
            mine[name].add_(1.0)
            assert not same_bits(mine[name], theirs[name])
    some.put_back()
    for own, place in enumerate(places):
        mine, theirs = entries(some, own), entries(everything, place)
        assert all(same_bits(mine[name], theirs[name]) for name in NAMES)
    for place, old in kept.items():
        assert all(map(same_bits, entries(everything, place).values(), old))


# --- copies -------------------------------------------------------------------------------


def _through_a_file(pair: Any) -> Any:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _through_a_state_dict(pair: tuple[list[nn.Parameter], Optimizer]) -> Any:
    params, optimizer = pair
    fresh, other = made(direction="momentum", scale="row")
    with torch.no_grad():
        for param, weight in zip(fresh, params, strict=True):
            param.copy_(weight)
    other.load_state_dict(optimizer.state_dict())
    return fresh, other


@pytest.mark.parametrize("clone", [
    copy.deepcopy, _through_a_file, _through_a_state_dict,
    lambda pair: pickle.loads(pickle.dumps(pair)),
], ids=["deepcopy", "file", "state_dict", "pickle"])  # fmt: skip
def test_a_copy_has_numbers_of_its_own_and_goes_on_alike(clone: Callable[[Any], Any]) -> None:
    params, optimizer = made(direction="momentum", scale="row")
    run(optimizer, params, (1, 2))
    fresh, other = clone((params, optimizer))
    before = [snapshot(state_of(other, param)[name] for name in NAMES) for param in fresh]
    run(optimizer, params, (3, 4))
    for param, old in zip(fresh, before, strict=True):  # the original has stepped, not the copy
        assert all(same_bits(state_of(other, param)[n], o) for n, o in zip(NAMES, old, strict=True))
    run(other, fresh, (3, 4))
    for param, twin in zip(params, fresh, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert same_bits(param, twin) and mine.keys() == theirs.keys()
        assert all(same_bits(mine[name], theirs[name]) for name in mine)
        assert all(mine[name].data_ptr() != theirs[name].data_ptr() for name in mine)


def test_a_file_of_state_holds_each_number_once() -> None:
    sizes = []
    for count in (100, 400):
        params = [nn.Parameter(torch.ones(3)) for _ in range(count)]
        optimizer = Fromage(params)
        run(optimizer, params, (1,))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        sizes.append(len(file.getvalue()))
    assert sizes[1] < 4.5 * sizes[0]


@pytest.mark.parametrize("what", [lambda opt: opt, lambda opt: opt.state_dict()],
                         ids=["optimizer", "state_dict"])  # fmt: skip
def test_a_pickle_grows_with_the_count_of_weights_and_not_its_square(
    what: Callable[[Any], Any],
) -> None:
    """As when an optimizer goes to another process, or a state dict into a checkpoint of others."""
    sizes = []
    for count in (100, 400):
        params = [nn.Parameter(torch.ones(3)) for _ in range(count)]
        optimizer = Madam(params)
        run(optimizer, params, (1,))
        sizes.append(len(pickle.dumps(what(optimizer))))
    assert sizes[1] < 4.5 * sizes[0]


def test_some_that_follow_each_other_are_parts_of_all() -> None:
    """As a weight alone is: what is written there needs no copy back."""
    params, optimizer = made(direction="momentum", scale="row")
    run(optimizer, params, (1, 2))
    numbers = numbers_of(params, optimizer)
    some = SomeNumbers(numbers, [1, 2])
    assert some.is_view and not SomeNumbers(numbers, [0, 2]).is_view
    some.step.fill_(17.0)
    some.anchor_norm.fill_(3.0)
    begin, end = numbers.first[1], numbers.first[3]
    assert some.anchor_norm.numel() == end - begin
    assert numbers.step.tolist() == [2.0, 17.0, 17.0, 2.0, 2.0]
    assert (numbers.anchor_norm[begin:end] == 3).all()
    outside = torch.cat([numbers.anchor_norm[:begin], numbers.anchor_norm[end:]])
    assert not (outside == 3).any()
    before = numbers.step.clone()
    some.put_back()
    some.fetch()
    assert same_bits(numbers.step, before)
