"""What ranks do in test_reshard: save after five steps, load on another number of them, go on.

    reshard.py FOLDER ACTION...   with ACTION = save:LAYOUT:NAME or load:LAYOUT:NAME

A NAME that begins with "spectral" is a run of fromage_spectral, all others are three rules at once.
Gradients are given: the same whole ones for any number of ranks. After a load five steps follow,
and rank 0 writes the whole weights to FOLDER/NAME-LAYOUT-RANKS.pt.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_relopt import create_optimizer
from tests.distributed.ranks import leave

HALF = 5
# Three rules in one optimizer; its state is empty but for scalars, one and two moments.
OVERRIDES = {"0.*": {"rule": "madam"}, "4.weight": {"rule": "adamw", "lr": 1e-2}}

FACTORED = {"direction": "factored"}


def net(seed: int = 0) -> nn.Sequential:
    """Uneven rows, and a last layer with fewer rows than ranks."""
    torch.manual_seed(seed)
    layers = nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2)
    model = nn.Sequential(*layers)
    nn.init.zeros_(model[2].bias)
    return model


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2))


def framed_net(seed: int) -> nn.Sequential:
    """Anchors by row, block, expert and tensor, none of which begins where a rank's part does."""
    torch.manual_seed(seed)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        embed=nn.Embedding(7, 6),
        qkv_proj=nn.Linear(6, 10),
        gate_up_proj=nn.Linear(6, 10),
        experts=Experts(),
        wide=nn.Embedding(2, 5),
    )
    model = nn.Sequential(parts)
    model.config = SimpleNamespace(num_attention_heads=3, num_key_value_heads=1, head_dim=2)
    nn.init.zeros_(model.embed.weight[3])
    return model


def settings(name: str) -> dict[str, Any]:
    """Arguments of create_optimizer."""
    if not name.startswith("spectral"):
        overrides = {f"*{weight}": options for weight, options in OVERRIDES.items()}
        return {"optim": "fromage", "overrides": overrides}
    overrides = {"*wide.weight": {"direction": "momentum", "momentum_dtype": "bfloat16"}}
    # Blocks and experts whose rows and columns have numbers of their own.
    overrides |= dict.fromkeys(("*gate_up_proj.weight", "*experts.weight"), FACTORED)
    if name.endswith("old"):  # what the preset of 0.1.0 gave to embeddings
        rows = {"direction": "momentum", "lr_factor": 0.5, "momentum": 0.95}
        overrides = {"embedding": rows, "*wide.weight": {"momentum_dtype": "bfloat16"}}
        overrides["matrix"] = {"beta": None}
    return {"optim": "fromage_spectral", "p_bound": 1.0, "overrides": overrides}


def make(layout: str, name: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model: nn.Module = framed_net(seed) if name.startswith("spectral") else net(seed)
    if layout == "fsdp2":
        fully_shard(model)
        assert all(isinstance(param, DTensor) for param in model.parameters())
    if layout == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    return model, create_optimizer(model, lr=0.03, **settings(name))


def run(model: nn.Module, optimizer: torch.optim.Optimizer, first: int) -> None:
    for step in range(first, first + HALF):
        for index, param in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(100 * step + index)
            grad = torch.randn(param.shape, generator=generator)
            if isinstance(param, DTensor):
                grad = distribute_tensor(grad, param.device_mesh, param.placements)
            param.grad = grad
        optimizer.step()


def whole(model: nn.Module) -> list[torch.Tensor]:
    return [whole_of(param.detach()) for param in model.parameters()]


def anchors_lie_where_rows_do(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for name, param in model.named_parameters():
        anchor = optimizer.state[param].get("anchor_norm")
        if name.endswith(("embed.weight", "wide.weight")):
            assert anchor.shape == (len(param),), name
            assert isinstance(anchor, DTensor) == isinstance(param, DTensor), name
            assert not isinstance(param, DTensor) or anchor.placements == param.placements, name
            assert not whole_of(anchor).isnan().any(), name


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def unbroken(name: str) -> list[torch.Tensor]:
    model, optimizer = make("plain", name, seed=0)
    run(model, optimizer, 0)
    run(model, optimizer, HALF)
    return whole(model)


def save(folder: Path, layout: str) -> None:
    model, optimizer = make(layout, folder.name, seed=0)
    run(model, optimizer, 0)
    anchors_lie_where_rows_do(model, optimizer)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(folder: Path, layout: str, result: Path) -> None:
    model, optimizer = make(layout, folder.name, seed=1)
    weights, state = get_state_dict(model, optimizer)
    held = {"model": weights, "optimizer": state}
    dcp.load(held, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"]
    )
    anchors_lie_where_rows_do(model, optimizer)
    run(model, optimizer, HALF)
    end = whole(model)
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(end, result)


def main() -> None:
    warnings.simplefilter("error")
    # Of torch's own: saving without a process group, and its way to hold storages.
    warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    for action in sys.argv[2:]:
        what, layout, name = action.split(":")
        if what == "save":
            save(folder / name, layout)
        else:
            load(folder / name, layout, folder / f"{name}-{layout}-{ranks}.pt")
    if dist.is_initialized():
        leave()


if __name__ == "__main__":
    main()
