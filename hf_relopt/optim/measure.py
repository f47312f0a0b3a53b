"""What a step really changed, measured on the weights, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_relopt.optim.rules import Rule


class Measurement:
    """Sums over one step; costs a copy of one tensor at a time, and no synchronisation."""

    def __init__(self) -> None:
        self._moved: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._changed: list[Tensor] = []
        self._at_bound: list[Tensor] = []
        self._entries = 0
        self._tensors = 0

    @property
    def empty(self) -> bool:
        """True until a step has been measured."""
        return self._tensors == 0

    def around(
        self,
        step: Callable[[], None],
        param: Tensor,
        rule: Rule,
        group: Mapping[str, Any],
        state: Mapping[str, Tensor],
    ) -> None:
        """Call ``step``, which steps ``param``, and record what that has changed.

        Args:
            rule, group, state: say which bound the tensor has.
        """
        before = param.detach().clone()
        step()
        anchor_norm = state.get("anchor_norm", state["step"])
        self._at_bound.append(rule.at_bound(param, anchor_norm, group))
        self._changed.append((before != param).sum())
        self._norms.append(_norm(before))
        self._moved.append(_norm(before.sub_(param)))
        self._entries += param.numel()
        self._tensors += 1

    def figures(self) -> dict[str, float]:
        """The figures as floats; waits for the device."""
        moved = sum(float(value) ** 2 for value in self._moved) ** 0.5
        norm = sum(float(value) ** 2 for value in self._norms) ** 0.5
        changed = sum(int(value) for value in self._changed)
        at_bound = sum(float(value) for value in self._at_bound)
        return {
            "relative_update": moved / norm if norm > 0 else 0.0,
            "at_bound": at_bound / max(self._tensors, 1),
            "changed_entries": changed / max(self._entries, 1),
        }


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor.float())
