"""Runs whose checkpoints 0.1.0 wrote: what made them, so that later versions can go on from them.

    git worktree add OLD e84ce3e; PYTHONPATH=OLD python tests/optim/old_checkpoints.py FOLDER

writes, for each setting, the weights and the optimizer's state after three steps, and the weights
that 0.1.0 itself has after three more.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

HALF = 3
# The name of a setting -> the optimizer's name and options.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "fromage": ("fromage", {"p_bound": 1.01}),
    "madam": ("madam", {}),
    "three_rules": (
        "fromage",
        {"overrides": {"qkv.*": {"rule": "madam"}, "out.weight": {"rule": "adamw", "lr": 1e-2}}},
    ),
    "spectral": ("fromage_spectral", {"backend": "loop"}),
    "momentum_bfloat16": ("fromage_momentum", {"momentum_dtype": "bfloat16"}),
    "rows_and_blocks": (
        "fromage",
        {
            "overrides": {
                "embed.weight": {"scale": "row"},
                "qkv.weight": {"direction": "adam", "scale": "block", "split_sizes": (6, 3, 3)},
                "out.weight": {"direction": "momentum", "bound": "sphere"},
            }
        },
    ),
}


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        embed=nn.Embedding(7, 6), qkv=nn.Linear(6, 12), out=nn.Linear(12, 4)
    )
    nn.init.zeros_(parts["out"].bias)
    return nn.Sequential(parts).to(dtype)


def dtype_of(name: str) -> torch.dtype:
    return torch.bfloat16 if name in ("momentum_bfloat16", "madam") else torch.float32


def make(model: nn.Module, name: str) -> torch.optim.Optimizer:
    from hf_relopt import create_optimizer

    optim, options = SETTINGS[name]
    return create_optimizer(model, optim, 2.0**-6, **options)


def run(model: nn.Module, optimizer: torch.optim.Optimizer, first: int) -> None:
    """HALF steps from ``first`` on; the gradients depend on nothing else."""
    for step in range(first, first + HALF):
        for number, param in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(100 * step + number)
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            if param.dim() == 2 and step == first:
                param.grad[1] = 0.0
        optimizer.step()


def write(folder: Path) -> None:
    for name in SETTINGS:
        model = net(dtype_of(name))
        optimizer = make(model, name)
        run(model, optimizer, 0)
        half = {k: v.clone() for k, v in model.state_dict().items()}
        torch.save(optimizer.state_dict(), folder / "state.pt")
        state = torch.load(folder / "state.pt")
        (folder / "state.pt").unlink()
        run(model, optimizer, HALF)
        torch.save(
            {"weights": half, "optimizer": state, "after": model.state_dict()},
            folder / f"{name}.pt",
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
