"""Whether a checkpoint's weights are those of this model, by name and shape, before any is loaded.

The stock Trainer loads what has a name of the model's and leaves the rest as it is. With no such
name it would train on from the initial weights. Where this cannot be told cheaply (quantized
weights, modules that load in a way of their own, FSDP's own files) it is left to the loader.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from hf_relopt.errors import FormatError

Shapes = dict[str, tuple[int, ...]]


def check_weights(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Compare ``model`` with the weights in ``folder`` that the stock Trainer would load into it.

    Raises:
        FormatError: one of them has another shape, or none is a weight of this model.
    """
    folder = Path(folder)
    files = _full_weights(folder)
    if files:
        _compare(model, {name: shape for file in files for name, shape in _shapes(file)}, files[0])
    else:
        adapters: Any = getattr(model, "peft_config", {})
        for name in adapters:
            _check_adapter(model, str(name), folder)


def check_held(model: nn.Module, held: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """The same for weights that were read already.

    Raises:
        FormatError: as above.
    """
    _compare(model, dict(_of(held)), Path(folder))


def _full_weights(folder: Path) -> list[Path]:
    """The files with the weights of a model, in the order in which the stock Trainer looks."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / name).is_file():
            names = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / file for file in sorted(set(names))]
    return []


def _shapes(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes; of safetensors, from its header alone."""
    try:
        with safe_open(file, framework="pt") as held:
            for name in held.keys():  # noqa: SIM118, it is no dictionary
                yield name, tuple(held.get_slice(name).get_shape())
    except Exception:
        yield from _of(torch.load(file, map_location="cpu", mmap=True, weights_only=True))


def _of(held: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, tensor in held.items():
        if isinstance(tensor, torch.Tensor):
            yield name, tuple(tensor.shape)


def _compare(model: nn.Module, saved: Shapes, path: Path) -> None:
    own = {
        _plain(name): tensor
        for tensors in (model.named_parameters, model.named_buffers)
        for name, tensor in tensors(remove_duplicate=False)
    }
    known = [name for name in saved if _plain(name) in own]
    if own and not known and not any(map(_loads_its_own_way, model.modules())):
        first = f" (the first is {min(saved)})" if saved else ""
        raise _error(path, f"none of its {len(saved)} tensors{first} is a weight of this model")
    for name in known:
        tensor = own[_plain(name)]
        # Subclasses may be packed or sharded, and lazy ones have no shape.
        if type(tensor) not in (torch.Tensor, nn.Parameter) or not tensor.dim():
            continue
        shape = tuple(tensor.shape)
        if shape != saved[name] and not _is_loaded_its_own_way(model, name):
            raise _error(path, f"{name} is {list(saved[name])}, but {list(shape)} in this model")


def _check_adapter(model: Any, name: str, folder: Path) -> None:
    part = folder if (folder / "adapter_model.safetensors").is_file() else folder / name
    if name != "default" and (folder / name).is_dir():
        part = folder / name
    file = part / "adapter_model.safetensors"
    if not file.is_file():
        return
    from peft import get_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    # An adapter that names its weights in a way of its own.
    except Exception:
        return
    saved, own = dict(_shapes(file)), dict(_of(held))
    known = [key for key in saved if key in own]
    if own and not known:
        raise _error(file, f"none of its tensors is a weight of this model's adapter {name}")
    # AdaLoRA's are made to fit those of the file.
    if "ADALORA" in str(model.peft_config[name].peft_type):
        return
    for key in known:
        if saved[key] != own[key]:
            raise _error(file, f"{key} is {list(saved[key])}, but {list(own[key])} in this model")


def _plain(name: str) -> str:
    """The name without what torch.compile, DDP and FSDP put in front."""
    for part in ("_orig_mod.", "_fsdp_wrapped_module."):
        name = name.replace(part, "")
    return name.removeprefix("module.")


def _is_loaded_its_own_way(model: nn.Module, name: str) -> bool:
    """Whether a module on the way to this weight may change it, or its name, when it is loaded."""
    module: Any = model
    for part in name.split(".")[:-1]:
        if _loads_its_own_way(module):
            return True
        module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            return True
    return _loads_its_own_way(module)


def _loads_its_own_way(module: nn.Module) -> bool:
    """Whether names or shapes of what it saves may not be those of its weights."""
    # BatchNorm's own way is a count that old files lack.
    own = not type(module)._load_from_state_dict.__module__.startswith("torch.nn.modules.")
    return own or bool(module._load_state_dict_pre_hooks or module._state_dict_hooks)


def _error(path: Path, what: str) -> FormatError:
    return FormatError(
        f"{path} does not belong to this model: {what}. Resume with the model that wrote it, or "
        "start a new run."
    )
