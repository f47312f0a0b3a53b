"""The current plan of an existing optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hf_relopt.errors import ConfigError
from hf_relopt.optim.inputs import names
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans.plan import Entry, Plan, peak_lr
from hf_relopt.plans.roles import role_in_group
from hf_relopt.sharding.layout import is_sharded, local


def plan_of(optimizer: torch.optim.Optimizer) -> Plan:
    """The current plan of a Fromage or Madam; ``print`` shows it as a table.

    Args:
        optimizer: made from a plan; if made from tensors, the roles come from their shapes.

    Returns:
        The plan, with the learning rates that schedules start from.

    Raises:
        ConfigError: it is another optimizer.
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    groups = inner.param_groups
    if not all(group.get("rule") in OPTIONS for group in groups):
        raise ConfigError(
            f"plan_of was given a {type(inner).__name__}; it takes an optimizer of hf_relopt, "
            "such as create_optimizer returns. To see another optimizer, print it."
        )
    entries = []
    for group in groups:
        options = {name: group[name] for name in OPTIONS[group["rule"]] if name in group}
        options.update(rule=group["rule"], lr=peak_lr(group))
        for name, param in zip(names(group), group["params"], strict=True):
            role = role_in_group(group, param)
            shown = torch.empty(0) if is_lazy(param) else param
            zero = _starts_at_zero(param, inner.state.get(param, {}))
            entries.append(Entry(name, shown, role, zero, (), options))
    return Plan(type(inner).__name__, tuple(entries), (), {}, inner.defaults["lr"])


def _starts_at_zero(param: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether a weight started at zero: kept in its anchor, or seen now where nothing waits."""
    anchors = state.get("anchor_norm")
    if isinstance(anchors, Tensor) and not anchors.is_meta:
        return not bool(local(anchors).count_nonzero())
    # Shards of one rank cannot say it, and a look at the others would be a collective.
    if is_lazy(param) or is_sharded(param) or param.is_meta or state or not param.numel():
        return False
    return not bool(param.detach().count_nonzero())
