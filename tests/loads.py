"""What a load must bring back, and what a refused one must not touch."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from hf_relopt.errors import RelOptError
from tests.tensors import Optimizer, same_bits, snapshot, state_of


def everything(optimizer: Optimizer) -> list[Any]:
    """Weights, state and options in a form that compares: what a failed load must not touch."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [
        copy.deepcopy(groups),
        snapshot(params),
        [{k: v.clone() for k, v in state_of(optimizer, param).items()} for param in params],
    ]


def assert_equal(one: list[Any], other: list[Any]) -> None:
    assert one[0] == other[0]
    assert all(same_bits(a, b) for a, b in zip(one[1], other[1], strict=True))
    for a, b in zip(one[2], other[2], strict=True):
        assert a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)


def refuses(optimizer: Optimizer, saved: Any, *words: str) -> None:
    """The load is refused with a message of ours that has the words, and changes nothing."""
    before, given = everything(optimizer), copy.deepcopy(saved)
    with pytest.raises(RelOptError) as caught:
        optimizer.load_state_dict(saved)
    for word in words:
        assert re.search(word, str(caught.value), re.IGNORECASE), f"{word!r}: {caught.value}"
    assert_equal(everything(optimizer), before)
    assert repr(saved) == repr(given)
