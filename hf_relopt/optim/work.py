"""What a backend is given: one group's tensors of a device and dtype, as this rank holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends.batch import Work, constant
from hf_relopt.lns.rounding import rounds_stochastically
from hf_relopt.optim.decision import GroupRule
from hf_relopt.optim.places import Places
from hf_relopt.optim.rules import RULES
from hf_relopt.optim.state import State, rate_of, widest
from hf_relopt.sharding import Sums, local, local_grad


def work_of(
    group: Mapping[str, Any],
    params: Sequence[Tensor],
    indices: Sequence[int],
    states: Sequence[State],
    sums: Sums,
    places: Places,
) -> Work:
    """Gather what a step of these parameters needs.

    Args:
        indices: their numbers in the optimizer.
        sums: what is to be summed in this step.
        places: where parts of sharded tensors lie.
    """
    rule, device = RULES[group["rule"]], params[0].device
    noisy = rounds_stochastically(params[0].dtype, group["rounding"])
    return Work(
        params=[local(param) for param in params],
        grads=[local_grad(param) for param in params],
        buffers=[tuple(local(state[name]) for name in rule.buffers) for state in states],
        places=[
            places.of(number, param) if noisy else None
            for number, param in zip(indices, params, strict=True)
        ],
        state=[{name: state[name] for name in rule.scalars} for state in states],
        numel=constant(tuple(param.numel() for param in params), widest(device), device),
        index=constant(tuple(indices), torch.int64, device) if noisy else None,
        lr=rate_of(group, device),
        sums=sums,
        decide=GroupRule.of(group, params[0].dtype),
        update=rule.update,
        constants={name: group[name] for name in rule.constants},
        maximize=group["maximize"],
    )
