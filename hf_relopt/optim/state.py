"""What an optimizer remembers of each tensor: three numbers, and the moments its rule keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_relopt.optim.rules import Rule

State = dict[str, Tensor]


def new_state(rule: Rule, param: Tensor) -> State:
    """Zero counts, an anchor not yet made (NaN), and empty moments.

    The anchor has one dimension: distributed checkpoints look for a tensor that has any to learn
    the device, and Fromage keeps no other.
    """
    scalars = dict.fromkeys(rule.scalars, 0.0)
    if rule.anchored:
        scalars["anchor_norm"] = float("nan")
    state = {
        name: torch.full((), value, dtype=torch.float32, device=param.device)
        for name, value in scalars.items()
    }
    if rule.anchored:
        state["anchor_norm"] = state["anchor_norm"].view(1)
    for name in rule.buffers:
        state[name] = torch.zeros_like(
            param, dtype=torch.float32, memory_format=torch.preserve_format
        )
    return state


def widest(device: torch.device) -> torch.dtype:
    """What norms and coefficients are computed in: float64, or float32 where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def as_scalar(value: float | Tensor, device: torch.device) -> Tensor:
    """``value`` as a 0-dim tensor on ``device``, without waiting for it."""
    if isinstance(value, Tensor):
        return value.detach().to(device, widest(device), non_blocking=True)
    return torch.full((), value, dtype=widest(device), device=device)
