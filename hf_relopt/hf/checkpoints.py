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

from hf_relopt.errors import FormatError
from hf_relopt.hf.log import logger

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
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
    weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not weights:
        return "it holds no weights"
    for index in (path for path in weights if path.name.endswith(".index.json")):
        if fault := _index_fault(index):
            return fault
    for path in (*weights, *folder.glob("*.safetensors")):
        if path.suffix == ".safetensors" and (fault := _safetensors_fault(path)):
            return f"{path.name} {fault}"
    for name in ("optimizer.pt", "scheduler.pt"):
        path = folder / name
        # A zip's directory is at its end: a cut file has none.
        if path.is_file() and not zipfile.is_zipfile(path):
            return f"{name} is cut short"
    return None


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
