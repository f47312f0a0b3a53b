"""Options that were changed in a param group are checked again, once, before a step uses them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from operator import is_
from typing import Any

from torch import Tensor

from hf_relopt.errors import ConfigError
from hf_relopt.options.checks import (
    check_options,
    check_together,
    refuse_swallowed,
    require_rule,
    settle,
)
from hf_relopt.options.method import method_of
from hf_relopt.options.tables import OPTIONS
from hf_relopt.rules.rule import RULES
from hf_relopt.step.state import state_fault

# What a schedule may set in every step; see inputs.check_scheduled.
_SCHEDULED = ("lr", "momentum")


@cache
def _watched(rule: str) -> tuple[str, ...]:
    return (*(name for name in OPTIONS[rule] if name not in _SCHEDULED), "weight_decay")


def watched_values(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a group's options are now. As long as they are the same objects nothing has changed.

    What a schedule sets is no part of it, but for a learning rate that is a tensor, whose value
    lies on the device.
    """
    rule, lr = group.get("rule"), group.get("lr")
    if not isinstance(rule, str) or rule not in RULES:
        return (rule,)
    lr = lr if isinstance(lr, Tensor) else None
    return (rule, lr, len(group), *map(group.get, _watched(rule)))


def are_as_before(now: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    """True if what :func:`watched_values` finds ``now`` is what it found ``before``."""
    return len(now) == len(before) and all(map(is_, now, before))


def check_group(group: dict[str, Any], states: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Check all options of a group, against each other and against the state that it has.

    Raises:
        ConfigError: names the option, the value, what is allowed and the remedy.
    """
    settle(group)
    rule = require_rule(group.get("rule"))
    for name, option in OPTIONS[rule].items():
        if name not in group:
            raise ConfigError(
                f"{name} is missing from a param group of {rule}, which takes {option.allowed}. "
                f"Put it back: its default is {option.default!r}."
            )
    refuse_swallowed(rule, group)
    check_options(rule, group)
    check_together(rule, group)
    for param in group["params"]:
        fault = state_fault(group, param, states.get(param, {}))
        if fault is not None:
            raise ConfigError(
                f"The options of a param group do not fit the state of its weights: {fault}. "
                f"{', '.join(_DECIDING)} cannot change once there is state: make a new optimizer "
                "to change them. If other code keeps something of its own there, let it use "
                f"another name than {', '.join(sorted(method_of(group, param).state))}."
            )


_DECIDING = ("rule", "direction", "scale", "split_dim", "split_sizes", "momentum_dtype")
