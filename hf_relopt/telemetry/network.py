"""The weights of an optimizer in the order of the network, under the names that the model has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_relopt.distance.weights import common_names
from hf_relopt.optim.base import RelativeOptimizer
from hf_relopt.optim.inputs import names as names_in
from hf_relopt.plans.plan import follows
from hf_relopt.plans.roles import role_in_group
from hf_relopt.sharding.layout import layout_of, local
from hf_relopt.sharding.reduce import full_norms
from hf_relopt.step.state import widest


@dataclass(frozen=True)
class Layer:
    """One weight of an optimizer.

    Attributes:
        number: its place among all weights of the optimizer.
        group: its param group.
    """

    number: int
    name: str
    role: str
    shape: tuple[int, ...]
    follows: str
    param: Tensor
    group: dict[str, Any]

    @property
    def is_matrix(self) -> bool:
        """True for what deep relative trust is a product over."""
        return len(self.shape) >= 2

    def described(self) -> dict[str, Any]:
        """What a file of telemetry says of it once."""
        return {
            "name": self.name,
            "role": self.role,
            "shape": list(self.shape),
            "follows": self.follows,
        }


def layers_of(optimizer: RelativeOptimizer, model: nn.Module | None) -> list[Layer]:
    """All weights of ``optimizer``, in the order of the model's parameters.

    Args:
        model: for names and order; without it both are those of the param groups.
    """
    places: dict[int, tuple[int, str]] = {}
    if model is not None:
        own = dict(model.named_parameters())
        shown = common_names(own)
        for place, (name, param) in enumerate(zip(shown, own.values(), strict=True)):
            places[id(param)] = place, name
    found: list[tuple[int, Layer]] = []
    number = 0
    for group in optimizer.param_groups:
        for own_name, param in zip(names_in(group), group["params"], strict=True):
            # What the model does not have comes last, as it stands in the groups.
            place, name = places.get(id(param), (len(places) + number, own_name))
            lazy = is_lazy(param)
            layer = Layer(
                number=number,
                name=name,
                role=role_in_group(group, param),
                shape=() if lazy else tuple(param.shape),
                follows=group["rule"] if lazy else follows(param, group),
                param=param,
                group=group,
            )
            found.append((place, layer))
            number += 1
    return [layer for _, layer in sorted(found, key=lambda each: each[0])]


@torch.no_grad()
def norms_of(layers: Sequence[Layer]) -> list[float | None]:
    """|W| of each layer; None of one without numbers. Call it on every rank of sharded weights."""
    known = [layer for layer in layers if not is_lazy(layer.param) and not layer.param.is_meta]
    rows = []
    for layer in known:
        shard = local(layer.param.detach())
        norm = torch.linalg.vector_norm(shard, dtype=widest(shard.device))
        rows.append(norm.view(1, 1))
    full = full_norms(rows, [layout_of(layer.param) for layer in known])
    values = torch.cat([row.double().cpu() for row in full]).flatten().tolist() if full else []
    found = dict(zip([layer.number for layer in known], values, strict=True))
    return [found.get(layer.number) for layer in layers]
