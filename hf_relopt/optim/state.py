"""What an optimizer remembers of each tensor: three numbers, and the moments its rule keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_relopt.optim.frame import frame_of
from hf_relopt.optim.rules import rule_of
from hf_relopt.roles import steps_as_vector
from hf_relopt.sharding import one_per_row

State = dict[str, Tensor]

# Two counts that every rule keeps: of steps, and of gradients that were not finite.
SCALARS = ("step", "skipped")


def new_state(group: Mapping[str, Any], param: Tensor) -> State:
    """Zero counts, anchors not yet made (NaN), and empty moments, for a member of ``group``.

    The anchor has one dimension: distributed checkpoints look for a tensor that has any to learn
    the device, and Fromage keeps no other.
    """
    rule = rule_of(group, param)
    state = {name: torch.zeros((), dtype=torch.float32, device=param.device) for name in SCALARS}
    if (
        rule.anchored
        and rule.framed
        and frame_of(group).scale == "row"
        and not steps_as_vector(group, param)
    ):
        state["anchor_norm"] = one_per_row(param, float("nan"))
    elif rule.anchored:
        state["anchor_norm"] = torch.full(
            (anchors(group, param),), float("nan"), dtype=torch.float32, device=param.device
        )
    for name in rule.buffers:
        _, dtype = _form(group, param, name)
        state[name] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    return state


def anchors(group: Mapping[str, Any], param: Tensor) -> int:
    """How many anchors a tensor of an anchored rule has: one, or one per block or row."""
    if not rule_of(group, param).framed or steps_as_vector(group, param):
        return 1
    frame = frame_of(group)
    return param.shape[0] if frame.scale == "row" else len(frame.blocks(param.shape))


def numbers(states: Sequence[State], name: str) -> list[Tensor]:
    """The one number that each state has under ``name``, 0-dim: an alias, to be written to."""
    # Views are not free, and most have no dimension as they are.
    return [s[name] if s[name].dim() == 0 else s[name].view(()) for s in states]


def widest(device: torch.device) -> torch.dtype:
    """What norms and coefficients are computed in: float64, or float32 where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def rate_of(group: Mapping[str, Any], device: torch.device) -> Tensor:
    """The rate of a group's steps, 0-dim."""
    lr, scale = as_scalar(group["lr"], device), group.get("lr_factor")
    return lr if scale is None else lr * scale


def as_scalar(value: float | Tensor, device: torch.device) -> Tensor:
    """``value`` as a 0-dim tensor on ``device``, without waiting for it."""
    if isinstance(value, Tensor):
        # It may have one dimension of one number.
        return value.detach().view(()).to(device, widest(device), non_blocking=True)
    return torch.full((), value, dtype=widest(device), device=device)


def has_state(state: Mapping[str, Any]) -> bool:
    """True once a weight's own state is made; wrappers may have put theirs there before."""
    return "skipped" in state


def state_fault(group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]) -> str | None:
    """What of a weight's state does not fit the options of its group, in words; None if all does.

    Looks at names, shapes and dtypes, and at no value. Names that the rule does not know belong to
    others, who may count steps there as well.
    """
    rule = rule_of(group, param)
    if not set(rule.state) & (set(state) - {"step"}):
        return None
    missing = sorted(set(rule.state) - set(state))
    if missing:
        there = ", ".join(sorted(map(str, state)))
        return f"{', '.join(missing)} is missing for a weight under {group['rule']}; it has {there}"
    for name in sorted(rule.state):
        value = state[name]
        if not isinstance(value, Tensor):
            return f"{name} is {value!r} ({type(value).__name__}), not a tensor"
        if value.layout is not torch.strided:
            return f"{name} is sparse ({value.layout})"
        if value.is_meta and not param.is_meta:
            return f"{name} is on the meta device, where tensors hold no values"
        shape, dtype = _form(group, param, name)
        # A single number may have a dimension or none.
        if tuple(value.shape) != shape and not value.numel() == math.prod(shape) == 1:
            return f"{name} has shape {tuple(value.shape)} in place of {shape}"
        if value.dtype != dtype:
            return f"{name} has dtype {value.dtype} in place of {dtype}"
    return None


def _form(
    group: Mapping[str, Any], param: Tensor, name: str
) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of a state tensor."""
    rule = rule_of(group, param)
    if name == "anchor_norm":
        return (anchors(group, param),), torch.float32
    if name not in rule.buffers:
        return (), torch.float32
    low = rule.framed and name == "momentum"
    return tuple(param.shape), frame_of(group).momentum_dtype if low else torch.float32
