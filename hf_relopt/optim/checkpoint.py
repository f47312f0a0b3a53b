"""The checkpoint contract: what is refused, and state that keeps its dtype."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_relopt.errors import ConfigError
from hf_relopt.optim.options import OPTIONS
from hf_relopt.optim.rules import RULES, rule_of

# Options that belong to the run and not to what it has learnt: a checkpoint's are not taken.
OWN = {"backend", "share_work"}

# How to recognise what wrote a checkpoint that has no "rule" in its groups.
_SIGNS = {
    "AdamW or Adam": {"betas", "eps"},
    "SGD": {"momentum", "dampening"},
    "Muon": {"ns_steps"},
    "Adafactor": {"decay_rate", "clip_threshold"},
}


def check(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Refuse a ``state_dict`` that was not written by the same rules over the same shapes."""
    for part in ("state", "param_groups"):
        if part not in state_dict:
            raise ConfigError(
                f"This is no optimizer checkpoint: it has no {part!r}, only "
                f"{sorted(map(str, state_dict))}. Pass what optimizer.state_dict() returned."
            )
    own = type(optimizer).__name__
    saved_groups = state_dict["param_groups"]
    for group in saved_groups:
        if group.get("rule") not in RULES:
            raise ConfigError(
                f"This checkpoint was written by {_author(group)}, and this optimizer is {own}. "
                f"Resume with the optimizer that wrote it, or start {own} afresh from the weights "
                "alone: do not load the optimizer's state; in a RelOptTrainer, "
                "train(..., discard_optimizer_state=True)."
            )
    saved_rules, own_rules = _followed(saved_groups), _followed(optimizer.param_groups)
    if saved_rules != own_rules:
        raise ConfigError(
            f"This checkpoint was written with {' and '.join(saved_rules)}, and this {own} has "
            f"{' and '.join(own_rules)}. Resume with the optimizer and the plan that wrote it, or "
            "start afresh from the weights alone."
        )
    _check_shapes(optimizer, state_dict)


def _check_shapes(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    saved = [len(group["params"]) for group in state_dict["param_groups"]]
    own = [len(group["params"]) for group in optimizer.param_groups]
    if saved != own:
        raise ConfigError(
            f"This checkpoint has param groups of {saved} tensors, this optimizer of {own}: it "
            "belongs to another model or another plan. Load it into the model it was saved from."
        )
    for own_group, saved_group in zip(
        optimizer.param_groups, state_dict["param_groups"], strict=True
    ):
        checksum = own_group["shapes_crc32"]
        if saved_group.get("shapes_crc32", checksum) != checksum:
            raise ConfigError(
                f"This checkpoint's group of {len(own_group['params'])} tensors has other shapes "
                "than this optimizer's: it belongs to another model. Load it into the model it was "
                "saved from."
            )
    for param, group, state in _pairs(optimizer, state_dict):
        rule = rule_of(_completed(group), param)
        for name in rule.buffers:
            shape = state[name].shape if name in state else None
            if shape is not None and shape != param.shape:
                raise ConfigError(
                    f"This checkpoint's {name} has shape {tuple(shape)} where the weight has "
                    f"{tuple(param.shape)}: it belongs to another model. Load it into the model it "
                    "was saved from."
                )
        missing = set(rule.state) - set(state)
        if state and missing:
            raise ConfigError(
                f"This checkpoint lacks {', '.join(sorted(missing))} for a tensor under "
                f"{group['rule']}; it has {', '.join(sorted(map(str, state)))}. It is damaged or "
                "another optimizer's."
            )


def shapes_crc32(params: Iterable[Tensor]) -> int:
    """A checksum of the tensors' shapes in order, by which a group knows its model again.

    Fromage's state holds no tensor that would show a weight's shape.
    """
    return zlib.crc32(repr([tuple(param.shape) for param in params]).encode())


def complete(groups: Iterable[dict[str, Any]]) -> None:
    """Give groups of an older checkpoint the options that it did not know, at their defaults."""
    for group in groups:
        # Its name before. Beside the new one it is a key of somebody's schedule.
        if group.get("rule") == "fromage" and "lr_scale" in group and "lr_factor" not in group:
            group["lr_factor"] = group.pop("lr_scale")
        group.update(_completed(group))


def _completed(group: Mapping[str, Any]) -> dict[str, Any]:
    options = OPTIONS.get(group.get("rule", ""), {})
    return {**{name: option.default for name, option in options.items()}, **group}


def restore_dtypes(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Put back what torch has cast to the parameter's dtype, as copies on the right device."""
    for param, _, state in _pairs(optimizer, state_dict):
        for name, value in state.items():
            if isinstance(value, Tensor):
                target = optimizer.state[param]
                copy = torch.empty_like(
                    value, device=param.device, memory_format=torch.preserve_format
                )
                target[name] = copy.copy_(value)


def _pairs(
    optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]
) -> Iterator[tuple[Tensor, Mapping[str, Any], Mapping[str, Any]]]:
    """(parameter, saved group, saved state) for each parameter in order."""
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        for param, key in zip(group["params"], saved["params"], strict=True):
            yield param, saved, state_dict["state"].get(key, {})


def kept(optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of the state tensors that the optimizer keeps, of whatever weight."""
    groups = optimizer.param_groups
    return {name for group in groups for p in group["params"] for name in rule_of(group, p).state}


def _followed(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rules of groups, each with its direction if it is Fromage with one of its own."""
    found = set()
    for group in map(_completed, groups):
        direction = group.get("direction", "gradient")
        found.add(group["rule"] if direction == "gradient" else f"{group['rule']} ({direction})")
    return sorted(found)


def _author(group: Mapping[str, Any]) -> str:
    for name, signs in _SIGNS.items():
        if signs <= set(group):
            return name
    return f"another optimizer (its options are {', '.join(sorted(set(group) - {'params'}))})"
