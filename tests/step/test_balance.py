"""Balanced directions: each block, expert or convolution is one matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage
from hf_relopt.step.decide import Verdict, judge
from hf_relopt.step.direction import directions
from hf_relopt.step.lineup import Lineup, Slots
from hf_relopt.step.numbers import Numbers
from hf_relopt.step.portions import Portion
from tests.frames import MATRICES
from tests.oracles.frame import balanced, parts
from tests.tensors import gradient, same_bits, to_numpy


def verdicts(lineup: Lineup) -> dict[Numbers, Verdict]:
    """Those of the gradients that the weights have now."""
    found = {}
    for numbers in lineup.numbers:
        norm = torch.stack([slot.param.grad.double().norm() for slot in numbers.slots])
        judged = judge(norm, float("inf"))
        found[numbers] = Verdict(judged, norm, None, judged.learn, norm.new_tensor(0.1), True)
    return found


@pytest.mark.parametrize(("shape", "split"), MATRICES, ids=str)
def test_each_block_is_balanced_by_itself(shape: tuple[int, ...], split: dict[str, Any]) -> None:
    options = {"scale": "block" if split else "tensor", "iterations": 2, **split}
    params = [nn.Parameter(torch.ones(shape)) for _ in range(2)]
    for number, param in enumerate(params):
        param.grad = gradient(param.detach(), number)
    optimizer = Fromage(params, direction="sinkhorn", **options)
    lineup = Slots(optimizer.param_groups, optimizer.state).taking_part()
    given = [param.grad.clone() for param in params]
    (found,) = directions(Portion(tuple(lineup.directed)), verdicts(lineup))
    cut = {"split_dim": None, "split_sizes": None, **split, "scale": options["scale"]}
    for param, direction in zip(params, found, strict=True):
        assert direction.shape == param.shape
        each = zip(
            parts(to_numpy(param.grad), **cut), parts(to_numpy(direction), **cut), strict=True
        )
        for block, result in each:
            expected = balanced(block.reshape(len(block), -1).astype(np.float64), 2)
            np.testing.assert_allclose(result.reshape(expected.shape), expected, rtol=1e-5)
    assert all(map(same_bits, [param.grad for param in params], given))


def test_groups_may_differ_in_iterations() -> None:
    ends = []
    for together in (True, False):
        params = [nn.Parameter(gradient(torch.empty(6, 4), n, 0.1)) for n in (1, 2)]
        groups = [{"params": [param], "iterations": n} for n, param in enumerate(params, start=1)]
        made = [groups] if together else [[group] for group in groups]
        optimizers = [Fromage(each, lr=0.05, direction="sinkhorn") for each in made]
        for number, param in enumerate(params):
            param.grad = gradient(torch.empty(6, 4), 5 + number)
        for optimizer in optimizers:
            optimizer.step()
        ends.append(params)
    assert all(map(same_bits, *ends))
    once, five = (nn.Parameter(torch.ones(6, 4)) for _ in range(2))
    for param, options in ((once, {"iterations": 1}), (five, {})):
        param.grad = gradient(torch.empty(6, 4), 1)
        Fromage([param], direction="sinkhorn", **options).step()
    assert not same_bits(once, five)


@pytest.mark.parametrize(("options", "words"), [
    ({"direction": "sinkhorn", "iterations": 0}, ["iterations is 0", "1 to 100", "leave it out"]),
    ({"direction": "sinkhorn", "iterations": 2.0}, ["iterations is 2.0"]),
    ({"direction": "spectral", "iterations": 2}, ["iterations is 2", "'spectral'", "'sinkhorn'"]),
    ({"direction": "sinkhorn", "scale": "row"}, ["'row'", "'sinkhorn'", "direction='rms'"]),
    ({"direction": "sinkhorn", "momentum": 0.9}, ["momentum is 0.9", "'sinkhorn'"]),
    ({"direction": "rms", "momentum": 0.9}, ["momentum is 0.9", "'rms'"]),
], ids=str)  # fmt: skip
def test_options_that_nothing_reads_are_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Fromage([nn.Parameter(torch.ones(3, 4))], **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_vectors_alone_have_nothing_to_balance() -> None:
    with pytest.raises(ConfigError, match=r"'sinkhorn'.*none of its weights is a matrix"):
        Fromage([nn.Parameter(torch.ones(4))], direction="sinkhorn")
