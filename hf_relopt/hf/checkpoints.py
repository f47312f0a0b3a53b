"""Which of a Trainer's checkpoints are whole.

Trainer writes a checkpoint in place and resumes from the highest number, whole or not: a run that
is killed while saving could not go on. trainer_state.json is what it writes last.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from hf_relopt.errors import ConfigError, FormatError
from hf_relopt.hf.log import logger

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
    # FSDP2: all weights in one file, or a part from each rank in a folder.
    "pytorch_model_fsdp.bin",
    "pytorch_model_fsdp_0",
)
# What torch.save wrote: a zip, whose directory is at its end, so a cut file has none.
_ZIPS = (
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "pytorch_model_fsdp.bin",
    "rng_state*.pth",
)


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The highest-numbered whole checkpoint in ``output_dir``, or None; logs those passed over."""
    for folder in _newest_first(Path(output_dir)):
        fault = find_fault(folder)
        if fault is None:
            return str(folder)
        logger.warning("%s is not whole (%s): it is passed over.", folder, fault)
    return None


def require_complete(folder: str | os.PathLike[str]) -> None:
    """Raise FormatError, with the fault, unless ``folder`` is a whole checkpoint."""
    fault = find_fault(Path(folder))
    if fault is not None:
        raise FormatError(
            f"{folder} is not a whole checkpoint: {fault}. Resume from another one; with "
            "resume_from_checkpoint=True the last whole one is taken."
        )


def find_fault(folder: Path) -> str | None:
    """What is missing or damaged in a checkpoint, or None."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        json.loads((folder / "trainer_state.json").read_text())
    except FileNotFoundError:
        return "trainer_state.json, which is written last, is missing"
    except (OSError, ValueError) as error:
        return f"trainer_state.json cannot be read ({error})"
    weights = [folder / name for name in _WEIGHTS if (folder / name).exists()]
    if not weights:
        return "it holds no weights"
    for index in (path for path in weights if path.name.endswith(".index.json")):
        if fault := _index_fault(index):
            return fault
    for path in (*weights, *folder.glob("*.safetensors")):
        if path.suffix == ".safetensors" and (fault := _safetensors_fault(path)):
            return f"{path.name} {fault}"
    for path in (path for pattern in _ZIPS for path in sorted(folder.glob(pattern))):
        if not zipfile.is_zipfile(path):
            return f"{path.name} is cut short"
    for pattern in ("pytorch_model_fsdp_*", "optimizer_*"):
        for part in sorted(path for path in folder.glob(pattern) if path.is_dir()):
            if fault := _sharded_fault(part):
                return f"{part.name}: {fault}"
    return None


def _sharded_fault(folder: Path) -> str | None:
    """What is missing of a folder that torch.distributed.checkpoint wrote, a file for a rank."""
    from torch.distributed.checkpoint import FileSystemReader

    try:
        metadata = FileSystemReader(folder).read_metadata()
    except FileNotFoundError:
        return ".metadata, which is written last, is missing"
    except Exception as error:  # whatever unpickling half a file comes to
        return f".metadata cannot be read ({error})"
    ends: dict[str, int] = {}
    for entry in (metadata.storage_data or {}).values():
        end = entry.offset + entry.length
        ends[entry.relative_path] = max(end, ends.get(entry.relative_path, 0))
    for name, end in sorted(ends.items()):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size < end:
            return f"{name} is cut short"
    return None


def state_names(folder: str | os.PathLike[str]) -> set[str]:
    """Names of what the optimizer keeps per tensor, of a checkpoint saved under FSDP2.

    Empty where there is no such state. Reads keys, and no more of the tensors than torch must.
    """
    folder = Path(folder)
    if (folder / "optimizer.bin").is_file():
        states = torch.load(folder / "optimizer.bin", weights_only=True, mmap=True)["state"]
        return {name for state in states.values() for name in state}
    if (folder / "optimizer_0").is_dir():
        from torch.distributed.checkpoint import FileSystemReader

        keys = FileSystemReader(folder / "optimizer_0").read_metadata().state_dict_metadata
        return {key.rpartition(".")[2] for key in keys if ".state." in key}
    return set()


def is_of_fsdp(folder: str | os.PathLike[str]) -> bool | None:
    """Say whether the optimizer's state was saved under FSDP; None if there is no state."""
    folder = Path(folder)
    if (folder / "optimizer.bin").is_file() or (folder / "optimizer_0").is_dir():
        return True
    return False if (folder / "optimizer.pt").is_file() else None


def weights_to_carry(folder: str | os.PathLike[str], fsdp: bool) -> dict[str, Any] | None:
    """Whole weights by name, of a checkpoint that was saved the other way; None if it was not.

    Args:
        fsdp: is this run under FSDP? Trainer then takes FSDP's files alone, and else all others.
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
    """Load whole weights into a model, sharded or not; tied ones may be there once."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, weights, options=options)


def load_across(
    model: Any, optimizer: torch.optim.Optimizer, folder: str | os.PathLike[str], fsdp: bool
) -> None:
    """Load a state that was saved under FSDP without it, or the other way round.

    Trainer looks for the file of its own kind alone, and would begin with a fresh state.

    Args:
        fsdp: is this run under FSDP?

    Raises:
        ConfigError: the checkpoint is another optimizer's or another model's, or it does not name
            its weights.
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
    """A state dict whose weights have numbers, with their names instead."""
    names: dict[int, str] = {}
    for group in saved["param_groups"]:
        if len(group.get("param_names", ())) != len(group["params"]):
            raise ConfigError(
                "This checkpoint's optimizer does not name its weights, so it cannot be loaded "
                "under FSDP. Go on with it as it was saved, or discard its state "
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
    """A state dict whose weights have names, with numbers in their order instead."""
    names = [name for group in saved["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: state for name, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]}
            for group in saved["param_groups"]
        ],
    }


def load_schedule(scheduler: Any, folder: str | os.PathLike[str]) -> None:
    """Let a schedule go on where the checkpoint in ``folder`` was, at its own peak rates.

    The optimizer that wrote the checkpoint may have had other rates and other groups.

    Args:
        scheduler: torch's LambdaLR, as all of transformers' schedules of the step are, or one that
            keeps no rates per group, as ReduceLROnPlateau.
    """
    saved = torch.load(Path(folder) / "scheduler.pt", weights_only=True)
    own = {"base_lrs": scheduler.base_lrs, "lr_lambdas": [None] * len(scheduler.base_lrs)}
    scheduler.load_state_dict({**saved, **{key: own[key] for key in own if key in saved}})
    if not hasattr(scheduler, "lr_lambdas"):
        return
    at = scheduler.last_epoch
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    scheduler._last_lr = [base * factor(at) for base, factor in pairs]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def _index_fault(index: Path) -> str | None:
    """Say which file is missing that the index of sharded weights names."""
    try:
        files = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError):
        return f"{index.name} is damaged"
    missing = sorted(name for name in files if not (index.parent / name).is_file())
    return f"{missing[0]} is missing" if missing else None


def _safetensors_fault(path: Path) -> str | None:
    """Compare the header's offsets with the file's length, without reading the weights."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return "has a damaged header"
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if path.stat().st_size != 8 + length + max(ends, default=0):
        return "is cut short"
    return None


def _newest_first(output_dir: Path) -> list[Path]:
    numbered = [
        (int(match.group(1)), path)
        for path in (output_dir.iterdir() if output_dir.is_dir() else ())
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]
