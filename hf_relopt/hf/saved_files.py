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
from hf_relopt.hf.saved_states import weights_problem


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


def index_fault(index: Path) -> str | None:
    """What is wrong with the index of weights in several files, or with the files it names."""
    fault = json_fault(index, _index_problem)
    if fault is not None:
        return fault
    files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        return f"names {missing[0]}, which is missing"
    # They are read as the index says, whatever they are called.
    is_pickle = index.name.endswith(".bin.index.json")
    usual = "pytorch_model*.bin" if is_pickle else "*.safetensors"
    for path in (index.parent / name for name in files):
        if path.match(usual):
            continue  # looked at with the others of the folder
        if fault := pickle_fault(path, weights_problem) if is_pickle else safetensors_fault(path):
            return f"names {path.name}, which {fault}"
    return None


def _index_problem(content: Any) -> str | None:
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        return "is damaged: it has no weight_map"
    if not all(isinstance(name, str) and _is_file_name(name) for name in files.values()):
        return "is damaged: its weight_map names something other than files of this folder"
    return None


def _is_file_name(name: str) -> bool:
    return name == Path(name).name and name.isprintable()


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


def pickle_fault(path: Path, problem: Callable[[Any], str | None]) -> str | None:
    """What is wrong with a file of torch.save: its bytes, a pickle that is not to be trusted.

    Args:
        problem: says what is wrong with the content, or None.
    """
    if fault := archive_fault(path):
        return fault
    try:
        # As the Trainer reads them: random states hold numpy arrays.
        with safe_globals():
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        return f"holds a pickle that {why_refused(error)}"
    return problem(content)


def why_refused(error: Exception) -> str:
    """Why torch.load with weights_only has not taken a pickle, in a few words."""
    # torch's own text offers first to load it all the same.
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked:
        return f"is not to be trusted (it asks for {asked[1]})"
    return f"is damaged ({one_line(error)})"
