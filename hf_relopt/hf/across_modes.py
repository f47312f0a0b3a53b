"""Resume without FSDP from a checkpoint that was saved under it, and the other way round.

Trainer looks only for the files of its own mode, and would start with a fresh state.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from hf_relopt.errors import ConfigError
from hf_relopt.hf.shard_metadata import read_metadata


def state_names(folder: str | os.PathLike[str]) -> set[str]:
    """Names of the optimizer's state tensors in a checkpoint that was saved under FSDP2.

    Empty if there is no such state. Reads keys, and as little of the tensors as torch allows.
    """
    folder = Path(folder)
    if (folder / "optimizer.bin").is_file():
        states = torch.load(folder / "optimizer.bin", weights_only=True, mmap=True)["state"]
        return {name for state in states.values() for name in state}
    if (folder / "optimizer_0").is_dir():
        keys = read_metadata(folder / "optimizer_0").is_tensor
        return {key.rpartition(".")[2] for key in keys if ".state." in key}
    return set()


def is_of_fsdp(folder: str | os.PathLike[str]) -> bool | None:
    """Say whether the optimizer's state was saved under FSDP; None if there is no state."""
    folder = Path(folder)
    if (folder / "optimizer.bin").is_file() or (folder / "optimizer_0").is_dir():
        return True
    return False if (folder / "optimizer.pt").is_file() else None


def weights_to_carry(folder: str | os.PathLike[str], fsdp: bool) -> dict[str, Any] | None:
    """Full weights by name, of a checkpoint that was saved the other way; None if it was not.

    Args:
        fsdp: True if this run is under FSDP, where Trainer reads FSDP's files alone.
    """
    folder = Path(folder)
    if any(folder.glob("pytorch_model_fsdp*")) == fsdp:
        return None
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        from safetensors.torch import load_file

        return {name: value for file in files for name, value in load_file(file).items()}
    whole = folder / "pytorch_model_fsdp.bin"
    return torch.load(whole, weights_only=True, map_location="cpu") if whole.is_file() else None


def put_weights(model: Any, weights: dict[str, Any]) -> None:
    """Load full weights into a model, sharded or not; tied ones may be listed once."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, weights, options=options)


def load_across(
    model: Any, optimizer: torch.optim.Optimizer, folder: str | os.PathLike[str], fsdp: bool
) -> None:
    """Load the optimizer's state of a checkpoint that was saved the other way.

    Args:
        fsdp: True if this run is under FSDP.

    Raises:
        ConfigError: the checkpoint belongs to another optimizer or model, or does not name its
            weights.
    """
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    folder = Path(folder)
    if fsdp:
        saved = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(model, optimizer, _by_name(saved), options=options)
    elif (folder / "optimizer.bin").is_file():
        saved = torch.load(folder / "optimizer.bin", weights_only=True, map_location="cpu")
        optimizer.load_state_dict(_by_number(saved))
    else:
        held = {"optimizer": get_optimizer_state_dict(model, optimizer)}
        load(held, storage_reader=FileSystemReader(folder / "optimizer_0"))
        set_optimizer_state_dict(model, optimizer, held["optimizer"])


def _by_name(saved: dict[str, Any]) -> dict[str, Any]:
    """The state dict with weights by name in place of number."""
    names: dict[int, str] = {}
    for group in saved["param_groups"]:
        if len(group.get("param_names", ())) != len(group["params"]):
            raise ConfigError(
                "This checkpoint's optimizer does not name its weights, so it cannot be loaded "
                "under FSDP. Resume it without FSDP, as it was saved, or discard its state "
                "(discard_optimizer_state=True)."
            )
        names.update(zip(group["params"], group["param_names"], strict=True))
    return {
        "state": {names[number]: state for number, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]}
            for group in saved["param_groups"]
        ],
    }


def _by_number(saved: dict[str, Any]) -> dict[str, Any]:
    """The state dict with weights by number, in their order, in place of name."""
    names = [name for group in saved["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: state for name, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]}
            for group in saved["param_groups"]
        ],
    }
