"""How weights are cut into matrices, and where their sums meet. More in test_balance.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from hf_relopt.step.lineup import Slots
from hf_relopt.step.matrices import MatrixSlot, in_place, matrix_slots, together
from tests.frames import MATRICES
from tests.tensors import gradient, same_bits


def slots_of(optimizer: Fromage):
    lineup = Slots(optimizer.param_groups, optimizer.state).taking_part()
    return [bundle.slots for bundle in lineup.directed]


def one(_: MatrixSlot) -> torch.Tensor:
    return torch.ones(())


def test_those_of_one_direction_are_in_the_order_of_their_numbers() -> None:
    groups = [
        {"params": [nn.Parameter(torch.ones(3, 4))], "direction": direction}
        for direction in ("sinkhorn", "factored", "momentum", "sinkhorn")
    ]
    groups.append({"params": [nn.Parameter(torch.ones(0, 4))], "direction": "sinkhorn"})
    for group in groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    groups[3]["iterations"] = 2
    slots = slots_of(Fromage(groups))
    assert [each.slot.number for each in matrix_slots(slots, "sinkhorn")] == [0, 3]
    assert [each.slot.number for each in matrix_slots(slots, "factored")] == [1]
    found = [[slot.param.grad for slot in own] for own in slots]
    split = together(matrix_slots(slots, "sinkhorn"), "iterations", found, one)
    assert [(each.value, len(each.slots)) for each in split] == [(5, 1), (2, 1)]


@pytest.mark.parametrize(("shape", "split"), MATRICES, ids=str)
def test_what_is_cut_is_put_together_again(shape, split) -> None:
    param = nn.Parameter(torch.ones(shape))
    param.grad = gradient(torch.empty(shape), 1)
    options = {"scale": "block" if split else "tensor", **split}
    slots = slots_of(Fromage([param], direction="sinkhorn", **options))
    (home,) = matrix_slots(slots, "sinkhorn")
    found = [[torch.zeros(shape)]]
    in_place([home], found, [home._stack(view, param.grad).clone() for view in home.views])
    assert same_bits(found[0][0], param.grad)


def test_a_process_alone_asks_no_other() -> None:
    param = nn.Parameter(torch.ones(3, 4))
    param.grad = torch.ones(3, 4)
    homes = matrix_slots(slots_of(Fromage([param], direction="sinkhorn")), "sinkhorn")
    (some,) = together(homes, "iterations", [[param.grad]], one)
    sums = [torch.ones(4), torch.ones(3), torch.ones(1)]
    assert some.across([(0, "rows"), (0, "columns"), (0, "all")], sums) == sums
