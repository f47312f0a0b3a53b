"""Weights in files: safetensors and torch's own, alone or as the shards of a folder, and the hub's.

Files are opened for each read and mapped, so a comparison holds a piece of a tensor, never a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_relopt.distance.weights import (
    HeldWeights,
    Slices,
    common_names,
    network_order,
    not_a_weight,
    of_state_dict,
)
from hf_relopt.errors import FormatError, one_line
from hf_relopt.lns.packing import SCALES
from hf_relopt.lns.stored import StoredCodes, codes_noted
from hf_relopt.sharding.layout import Layout

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TORCH_FILES = (".bin", ".pt", ".pth")
# In this order: what Transformers and diffusers write, and their older files.
_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_INSIDE = ("state_dict", "model_state_dict", "model", "module")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class FileWeights:
    """Tensors in safetensors files.

    Args:
        files: one, or the shards of a model.
        label: what they are, for messages.

    Attributes:
        damaged: files that cannot be read, and why; empty unless some of several are.

    Raises:
        FormatError: none of the files can be read.
    """

    in_order = False

    def __init__(self, files: Iterable[Path], label: str) -> None:
        self.label = label
        self.shapes: dict[str, torch.Size] = {}
        self.others: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.damaged: dict[Path, str] = {}
        self._at: dict[str, tuple[Path, str]] = {}
        # Of weights in codes: what they are, and by a file's own name where their scales are.
        self._codes: dict[str, StoredCodes] = {}
        self._scales: dict[str, Path] = {}
        for file in files:
            try:
                self._look_into(file)
            except (SafetensorError, OSError) as error:
                self.damaged[file] = one_line(error)
        self._check_codes()
        # A file's own order is by dtype and alphabet.
        self.shapes = {name: self.shapes[name] for name in network_order(self.shapes)}
        if self.damaged and not self._at:
            file, fault = next(iter(self.damaged.items()))
            raise FormatError(
                f"{file} cannot be read: {fault}. It is no safetensors file, or a truncated one: "
                "write or download it again."
            )

    def _look_into(self, file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            stored = list(opened.keys())
            # safetensors' save_model notes there which tied names it has left out.
            noted = opened.metadata() or {}
            self.aliases.update({name: own for name, own in noted.items() if own in stored})
            codes = codes_noted(noted)
            for name, own in zip(common_names(stored), stored, strict=True):
                piece = opened.get_slice(own)
                kind = piece.get_dtype()
                if own.endswith(SCALES):
                    # A shard may end between bytes and scales.
                    self._scales[own.removesuffix(SCALES)] = file
                    continue
                if codes is not None and own in codes.shapes and kind == "U8":
                    self.shapes[name], self._at[name] = codes.shapes[own], (file, own)
                    self._codes[name] = codes
                    continue
                dtype = _DTYPES.get(kind)
                if dtype is None:
                    self.others[name] = f"stored as {kind}"
                elif reason := not_a_weight(name, dtype):
                    self.others[name] = reason
                else:
                    self.shapes[name] = torch.Size(piece.get_shape())
                    self._at[name] = file, own

    def _check_codes(self) -> None:
        coded = {self._at[name][1] for name in self._codes}
        if self.damaged:
            # What lies in the lost files cannot be told; the rest is compared.
            for name in [name for name in self._codes if self._at[name][1] not in self._scales]:
                del self.shapes[name], self._at[name], self._codes[name]
            return
        for own in self._scales.keys() - coded:
            raise FormatError(
                f"{self._scales[own]} holds {own} in codes without the note of their shapes that "
                "save_pretrained writes. Load the model and save it again, or compare models: "
                "network_distance(AutoModel.from_pretrained(BASE), "
                "AutoModel.from_pretrained(FOLDER)), after `import hf_relopt`."
            )
        for own in coded - self._scales.keys():
            raise FormatError(
                f"{self.label} holds {own} in codes, and their scales are not there. It is "
                "incomplete: write or download it again."
            )

    def read(self, name: str, where: Slices) -> Tensor:
        """A copy of a piece."""
        file, own = self._at[name]
        codes = self._codes.get(name)
        with safe_open(file, framework="pt") as opened:
            if codes is None:
                return opened.get_slice(own)[where] if where else opened.get_tensor(own)
            packed = opened.get_slice(own)
            with safe_open(self._scales[own], framework="pt") as beside:
                scales = beside.get_slice(own + SCALES)
                where = where or tuple(slice(0, size) for size in codes.shapes[own])
                return codes.read(own, where, packed.__getitem__, scales.__getitem__)

    def layout(self, name: str) -> Layout | None:
        """None: files are not sharded over ranks."""
        return None


def locate(source: str | os.PathLike[str]) -> Path:
    """The file or folder that ``source`` names; a hub's name is downloaded, or found in the cache.

    Raises:
        FormatError: neither a path nor a model that the hub or its cache has.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    name, _, revision = str(source).partition("@")
    looks_local = path.is_absolute() or str(source).startswith((".", "~")) or name.count("/") > 1
    if looks_local or path.suffix in (".safetensors", *TORCH_FILES):
        raise FormatError(f"{source} does not exist. Pass a file, a folder, or a model of the hub.")
    wanted = ["*.safetensors", "*.safetensors.index.json", ADAPTER, "config.json"]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            wanted = ["pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin"]
            snapshot_download(name, revision=revision or None, allow_patterns=wanted)
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FormatError(
            f"{source} is no file or folder here, and {_hub_fault(error)}. Check the name, or pass "
            "a path."
        ) from error


def _hub_fault(error: Exception) -> str:
    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached, and its cache on this machine has no such model"
    if isinstance(error, RevisionNotFoundError):
        return "the hub's model has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or it needs a token"
    if isinstance(error, HFValidationError):
        return "it is no name of a model of the hub"
    return f"the hub says: {one_line(error)}"


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter of PEFT, and no model."""
    return path.is_dir() and (path / ADAPTER).is_file()


def weights_in(path: Path) -> FileWeights | HeldWeights:
    """The weights in a file, or in a folder of a model.

    Raises:
        FormatError: there are none, or they cannot be read.
    """
    if path.is_file():
        return _in_files([path], str(path))
    for name in _NAMES:
        if (path / name).is_file():
            found = [path / name] if not name.endswith(".json") else _shards(path / name)
            return _in_files(found, str(path))
    if files := sorted(path.glob("*.safetensors")):
        return _in_files(files, str(path))
    raise FormatError(f"{path} holds no weights. {_hint(path)}")


def _in_files(files: list[Path], label: str) -> FileWeights | HeldWeights:
    kinds = {file.suffix for file in files}
    if kinds <= {".safetensors"}:
        return FileWeights(files, label)
    if not kinds <= set(TORCH_FILES):
        raise FormatError(
            f"{files[0]} is no file of weights: pass .safetensors, {', '.join(TORCH_FILES)}, or a "
            "folder that save_pretrained has written."
        )
    state: dict[str, Any] = {}
    for file in files:
        state.update(_torch_file(file))
    return of_state_dict(state, label)


def _torch_file(file: Path) -> dict[str, Any]:
    try:
        # Mapped: pieces are read from the disk when they are asked for.
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch's unpickler fails over a text in many ways
        raise FormatError(
            f"{file} cannot be read: {one_line(error)}. Pass a file of torch.save(state_dict), or "
            "safetensors."
        ) from error
    if not isinstance(found, dict):
        raise FormatError(f"{file} holds a {type(found).__name__}, not a state dict.")
    # Checkpoints of training loops and of Lightning hold the weights under one of these.
    inside = next((found[key] for key in _INSIDE if isinstance(found.get(key), dict)), found)
    return {str(name): value for name, value in inside.items()}


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{index} is damaged: {one_line(error)}. Write or download it again."
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FormatError(
            f"{index.parent} is incomplete: {index.name} names {missing[0]} "
            f"({len(missing)} of {len(names)} files are missing). Download or copy them again."
        )
    return [index.parent / name for name in names]


def _hint(path: Path) -> str:
    checkpoints = [p for p in path.glob("checkpoint-*") if p.name[11:].isdigit()]
    if checkpoints:
        newest = max(checkpoints, key=lambda p: int(p.name[11:]))
        return f"Its newest checkpoint is {newest}: pass that."
    if any(path.glob("**/.metadata")):
        return (
            "It is a checkpoint of torch's distributed format: merge it first, by "
            "`accelerate merge-weights`."
        )
    return "Pass a folder that save_pretrained has written, or one file of weights."
