"""What an optimizer remembers of each tensor: three numbers, and the moments its rule keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_relopt.optim.rules import Facts, Rule
from hf_relopt.sharding import WholeNorms

# A float64 weight outside of it must neither look like one that started at zero nor be unbounded.
_FLOAT32_RANGE = (torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)

State = dict[str, Tensor]


def new_state(rule: Rule, param: Tensor) -> State:
    """Zero counts, an anchor not yet made (NaN), and empty moments."""
    scalars = dict.fromkeys(rule.scalars, 0.0)
    if rule.anchored:
        scalars["anchor_norm"] = float("nan")
    state = {
        name: torch.full((), value, dtype=torch.float32, device=param.device)
        for name, value in scalars.items()
    }
    for name in rule.buffers:
        state[name] = torch.zeros_like(
            param, dtype=torch.float32, memory_format=torch.preserve_format
        )
    return state


def advance(
    rule: Rule,
    states: Sequence[State],
    numels: Sequence[int],
    norms: WholeNorms,
    lr: Tensor,
    finite: Tensor,
    learn: Tensor,
) -> Facts:
    """Update step counts, anchors and counters in place; return the facts of this step.

    Args:
        finite: bool [T], is this tensor's gradient usable?
        learn: bool [T], is it not all zero either?
    """
    like = norms.grad
    values = {
        name: torch.stack([state[name] for state in states]).to(like.dtype) for name in rule.scalars
    }
    values["step"] = values["step"] + learn
    values["skipped"] = values["skipped"] + ~finite
    if rule.anchored and norms.param is not None:
        values["anchor_norm"] = _anchors(values["anchor_norm"], norms.param, finite)
    for name, value in values.items():
        torch._foreach_copy_([state[name] for state in states], list(value.unbind()))
    numel = torch.tensor([max(numel, 1) for numel in numels], dtype=like.dtype)
    return Facts(
        norms=norms,
        anchor_norm=values.get("anchor_norm", values["step"]),
        step=values["step"],
        numel=numel.to(like.device, non_blocking=True),
        lr=lr,
    )


def _anchors(anchor_norm: Tensor, param_norm: Tensor, finite: Tensor) -> Tensor:
    """Make the anchors that are missing where the gradient is usable."""
    norm = torch.where(param_norm > 0, param_norm.clamp(*_FLOAT32_RANGE), 0.0)
    fresh = torch.isnan(anchor_norm) & finite
    # Through float32, so that the first step sees what is kept.
    return torch.where(fresh, norm.to(torch.float32).to(norm.dtype), anchor_norm)


def as_scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """``value`` as a 0-dim tensor of ``like``'s kind, without waiting for the device."""
    if isinstance(value, Tensor):
        return value.detach().to(like.device, like.dtype, non_blocking=True)
    return torch.full((), value, dtype=like.dtype, device=like.device)
