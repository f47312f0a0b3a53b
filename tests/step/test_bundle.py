"""Bundles: which weights a backend works on at once, and in which order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from hf_relopt.step.bundle import Bundle
from hf_relopt.step.slot import in_bundles
from tests.step.lineups import lineup_of, slots_of


def bundled(*groups: dict[str, Any], dtypes: tuple[torch.dtype, ...] = ()) -> list[Bundle]:
    """The bundles of groups of one matrix each."""
    each = dtypes or (torch.float32,) * len(groups)
    given = [
        {"params": [nn.Parameter(torch.ones(4, 2, dtype=dtype))], **group}
        for group, dtype in zip(groups, each, strict=True)
    ]
    return lineup_of(Fromage(given)).bundles


@pytest.mark.parametrize("groups", [
    ({}, {"lr": 0.5}), ({}, {"lr_factor": 0.5}), ({"lr": torch.tensor(0.1)}, {}),
    ({"weight_decay": 0.0}, {"initial_lr": 0.1}), ({"split_sizes": [2, 2], "scale": "block"},
    {"split_sizes": (2, 2), "scale": "block"}), ({"direction": "momentum"},
    {"direction": "momentum", "momentum": 0.9, "nesterov": True, "p_bound": 4.0}),
], ids=str)  # fmt: skip
def test_groups_that_step_alike_share_a_bundle(groups: tuple[dict[str, Any], ...]) -> None:
    (bundle,) = bundled(*groups)
    assert len(bundle.slots) == 2


@pytest.mark.parametrize("options", [
    {"p_bound": 2.0}, {"min_scale": 1.0}, {"seed": 1}, {"rounding": "nearest"}, {"rule": "madam"},
    {"backend": "loop"}, {"maximize": True}, {"direction": "momentum"}, {"scale": "row"},
    {"bound": "sphere"},
], ids=str)  # fmt: skip
def test_groups_that_step_otherwise_do_not(options: dict[str, Any]) -> None:
    assert [len(bundle.slots) for bundle in bundled({}, options)] == [1, 1]
    assert [len(bundle.slots) for bundle in bundled({}, options, options, {})] == [2, 2]


def test_dtypes_and_devices_are_bundles_of_their_own() -> None:
    assert len(bundled({}, {}, dtypes=(torch.float32, torch.bfloat16))) == 2
    here, there = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2, device="meta"))
    found = lineup_of(Fromage([here, there, nn.Parameter(torch.ones(2))]))
    assert [len(bundle.slots) for bundle in found.bundles] == [2, 1]
    assert len(found.numbers) == 2, "a device has numbers of its own"


def test_bundles_of_one_formula_follow_each_other() -> None:
    """They are decided together, whatever momentum and p_bound they have."""
    momentum, other = {"direction": "momentum"}, {"direction": "momentum", "min_scale": 1.0}
    found = bundled(momentum, other, {**momentum, "p_bound": 2.0}, {}, {**momentum, "momentum": 0})
    formulas = [bundle.slots[0].formula for bundle in found]
    runs = [len(list(run)) for _, run in itertools.groupby(formulas)]
    assert sorted(runs) == [1, 1, 3] and len(set(formulas)) == 3
    ends = [(bundle.begin, bundle.end) for bundle in found]
    assert [end for _, end in ends[:-1]] == [begin for begin, _ in ends[1:]]


def test_slots_of_a_bundle_are_in_the_order_of_their_numbers() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2, 2))], "seed": n % 2} for n in range(5)]
    optimizer = Fromage(groups)
    numbers = [[slot.number for slot in each] for each in in_bundles(slots_of(optimizer).all)]
    assert numbers == [[0, 2, 4], [1, 3]]
