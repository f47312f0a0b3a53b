"""Check single files of a checkpoint without executing anything in them."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals

from hf_relopt.errors import one_line

# Fields of trainer_state.json without which nothing can be resumed, and of which kind they are.
_STATE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "global_step": int,
    "max_steps": int,
    "log_history": list,
    "epoch": (int, float, type(None)),
}


def json_fault(path: Path, problem: Callable[[Any], str | None]) -> str | None:
    """What is wrong with a JSON file; None if nothing is.

    Args:
        problem: says what is wrong with the content, or None.
    """
    try:
        # In the encoding that it will be read in.
        content = json.loads(path.read_text(encoding="utf-8"))
    # Deep nesting ends in a RecursionError, a number of many digits in a ValueError.
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        return f"cannot be read ({one_line(error)})"
    return problem(content)


def object_problem(content: Any) -> str | None:
    """What is wrong with JSON that should be an object; None if nothing is."""
    if isinstance(content, dict):
        return None
    return f"holds {type(content).__name__} in place of an object"


def trainer_state_problem(content: Any) -> str | None:
    """What is wrong with the content of trainer_state.json; None if nothing is."""
    if fault := object_problem(content):
        return fault
    for name, kinds in _STATE_FIELDS.items():
        if name not in content:
            return f"lacks {name}"
        if not isinstance(content[name], kinds) or isinstance(content[name], bool):
            return f"holds a {name} of type {type(content[name]).__name__}"
    if content["global_step"] < 0:
        return f"holds a global_step of {content['global_step']}"
    if not all(isinstance(entry, dict) for entry in content["log_history"]):
        return "holds a log_history that is not made of objects"
    return None


def index_fault(index: Path) -> str | None:
    """What is wrong with the index of weights in several files, or with the files it names."""
    fault = json_fault(index, _index_problem)
    if fault is not None:
        return fault
    files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    missing = [name for name in files if not (index.parent / name).is_file()]
    return f"names {missing[0]}, which is missing" if missing else None


def _index_problem(content: Any) -> str | None:
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        return "is damaged: it has no weight_map"
    if not all(isinstance(name, str) and name == Path(name).name for name in files.values()):
        return "is damaged: its weight_map names something other than files of this folder"
    return None


def safetensors_fault(path: Path) -> str | None:
    """What is wrong with a safetensors file; its header is compared with its length.

    The format has no checksums: bytes that changed within a weight cannot be noticed.
    """
    try:
        with safe_open(path, framework="pt"):
            return None
    except (OSError, SafetensorError) as error:
        return f"is damaged or truncated ({one_line(error)})"


def archive_fault(file: Path | IO[bytes]) -> str | None:
    """What is wrong with the zip archive that torch.save wrote; reads all of it, once."""
    try:
        with zipfile.ZipFile(file) as archive:
            # With torch.serialization.set_crc32_options(False) there are no checksums to compare.
            summed = any(member.CRC for member in archive.infolist())
            changed = archive.testzip() if summed else None
    # A damaged directory may ask for compression that does not exist, or for a password.
    except Exception as error:
        return f"is damaged or truncated ({one_line(error)})"
    return None if changed is None else f"is damaged: the checksum of {changed} does not match"


def pickle_fault(path: Path) -> str | None:
    """What is wrong with a file of torch.save: its bytes, or a pickle that is not to be trusted."""
    if fault := archive_fault(path):
        return fault
    try:
        # As the Trainer reads them: random states hold numpy arrays.
        with safe_globals():
            torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        return f"holds a pickle that {why_refused(error)}"
    return None


def why_refused(error: Exception) -> str:
    """Why torch.load with weights_only has not taken a pickle, in a few words."""
    # torch's own text offers first to load it all the same.
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked:
        return f"is not to be trusted (it asks for {asked[1]})"
    return f"is damaged ({one_line(error)})"
