"""Slots and lineups of an optimizer, as its first step makes them."""

from __future__ import annotations

import torch

from hf_relopt.step.lineup import Lineup, Slots
from tests.tensors import Optimizer


def slots_of(optimizer: Optimizer) -> Slots:
    """New ones."""
    return Slots(optimizer.param_groups, optimizer.state)


def lineup_of(optimizer: Optimizer) -> Lineup:
    """That of a step in which every weight has a gradient."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    return slots_of(optimizer).taking_part()
