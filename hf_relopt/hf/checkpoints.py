"""Which of a Trainer's checkpoints are complete.

Trainer writes a checkpoint in place and resumes from the highest number, complete or not, so a run
that is killed while saving could not be resumed. It writes trainer_state.json last.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from hf_relopt.errors import FormatError, one_line
from hf_relopt.hf.log import logger
from hf_relopt.hf.saved_files import (
    index_fault,
    json_fault,
    pickle_fault,
    safetensors_fault,
)
from hf_relopt.hf.saved_states import (
    PICKLES,
    config_problem,
    object_problem,
    trainer_state_problem,
)
from hf_relopt.hf.shard_files import is_sharded, sharded_fault

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
# PEFT puts an adapter of any name but "default" into a folder of that name.
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
# The optimizer's state of one process, DDP, or FSDP2 with full state dicts. XLA and SageMaker write
# a file from each rank, and RelOptTrainer trains there as the stock Trainer does.
_STATES = ("optimizer.pt", "optimizer.bin", "rank*-of-*-optimizer.pt", "optimizer.pt_*")
# DeepSpeed's own folder: weights, optimizer state and schedule.
_DEEPSPEED = "global_step[0-9]*"
# The folders that Accelerate has torch.distributed.checkpoint write and read.
_SHARDED = ("pytorch_model_fsdp_0", "optimizer_0")
# What is looked for by name: files, and folders.
_FILES = (
    "trainer_state.json",
    "*config.json",
    "model*.safetensors",
    "*.index.json",
    *_ADAPTERS,
    *_STATES,
    *PICKLES,
)
_FOLDERS = (*_SHARDED, _DEEPSPEED)

WEIGHTS_ALONE = "it holds only weights, as written with save_only_model"


def last_complete_checkpoint(
    output_dir: str | os.PathLike[str], *, weights_alone: bool = False
) -> str | None:
    """The highest-numbered complete checkpoint in ``output_dir``; logs those it skips.

    Args:
        weights_alone: accept a checkpoint without optimizer state (``save_only_model``).
    Returns: its path; None if there is no complete checkpoint.

    Raises:
        FormatError: there are only weights. Starting from step 0 would silently lose them.
    """
    passed_over: list[tuple[Path, str]] = []
    for folder in _newest_first(Path(output_dir)):
        fault = find_fault(folder, weights_alone=weights_alone)
        if fault is None:
            return str(folder)
        logger.warning("%s is not a complete checkpoint (%s): skipping it.", folder, fault)
        passed_over.append((folder, fault))
    for folder, fault in passed_over:
        if fault == WEIGHTS_ALONE:
            raise weights_alone_error(folder)
    return None


def weights_alone_error(folder: str | os.PathLike[str]) -> FormatError:
    """The error for resuming from a checkpoint without optimizer state and schedule."""
    return FormatError(
        f"{folder} cannot be resumed: {WEIGHTS_ALONE}. Train without save_only_model to resume "
        "exactly. RelOptTrainer.train(..., discard_optimizer_state=True) resumes these weights at "
        "their step, with a fresh optimizer state. To start a new run from them, use "
        "from_pretrained."
    )


def holds_weights_alone(folder: str | os.PathLike[str]) -> bool:
    """Whether optimizer state and schedule are both missing; looks only at names of files."""
    return _state_missing(Path(folder), weights_alone=False) == WEIGHTS_ALONE


def require_own_kind(folder: str | os.PathLike[str]) -> None:
    """Raise FormatError if ``folder`` holds optimizer state that only another engine reads.

    The stock Trainer would start with a fresh state.
    """
    held = Path(folder)
    own = [held / name for name in ("optimizer.pt", "optimizer.bin", "optimizer_0")]
    if not any(path.exists() for path in own) or not (held / "scheduler.pt").is_file():
        raise FormatError(
            f"{folder} cannot be resumed: its optimizer state and schedule are those of DeepSpeed, "
            "XLA or SageMaker, which this run does not use. Resume it as it was trained, or pass "
            "train(..., discard_optimizer_state=True) to resume its weights with a fresh state."
        )


def require_complete(folder: str | os.PathLike[str], *, weights_alone: bool = False) -> None:
    """Raise FormatError, with the fault, unless ``folder`` is a complete checkpoint."""
    fault = find_fault(Path(folder), weights_alone=weights_alone)
    if fault == WEIGHTS_ALONE:
        raise weights_alone_error(folder)
    if fault is not None:
        raise FormatError(
            f"{folder} is not a complete checkpoint: {fault}. Resume from another one; "
            "resume_from_checkpoint=True takes the last complete one."
        )


def find_fault(folder: Path, *, weights_alone: bool = False) -> str | None:
    """What is missing, damaged or not to be trusted in a checkpoint; None if nothing is.

    Reads every file once, to verify its checksums, and executes nothing in it.

    Args:
        weights_alone: optimizer state and schedule may be missing together.
    """
    try:
        return _find_fault(folder, weights_alone)
    except OSError as error:
        return f"it cannot be read ({one_line(error)})"


def _find_fault(folder: Path, weights_alone: bool) -> str | None:
    if not folder.is_dir():
        return "there is no such folder"
    state = folder / "trainer_state.json"
    if not os.path.lexists(state):
        return "trainer_state.json, which is written last, is missing"
    adapters = _adapter_folders(folder)
    for part in (folder, *adapters):
        if fault := _misplaced(part):
            return str(part.relative_to(folder) / fault)
    if fault := json_fault(state, trainer_state_problem) or _step_fault(state):
        return f"trainer_state.json {fault}"
    config = folder / "config.json"
    if config.is_file() and (fault := json_fault(config, config_problem)):
        return f"config.json {fault}"
    weights = [folder / name for name in _WEIGHTS if (folder / name).exists()]
    if not weights and not adapters and not holds_deepspeed(folder):
        return "it holds no weights"
    if fault := _state_missing(folder, weights_alone):
        return fault
    for index in (path for path in weights if path.name.endswith(".index.json")):
        if fault := index_fault(index):
            return f"{index.name} {fault}"
    for part in (folder, *adapters):
        if part in adapters and not _holds_adapter(part):
            return f"the weights of the adapter in {part.name} are missing"
        for path in sorted(part.glob("*.safetensors")):
            if fault := safetensors_fault(path):
                return f"{path.relative_to(folder)} {fault}"
        for pattern, problem in PICKLES.items():
            for path in sorted(part.glob(pattern)):
                if fault := pickle_fault(path, problem):
                    return f"{path.relative_to(folder)} {fault}"
    for path in (part / "adapter_config.json" for part in (folder, *adapters)):
        if _holds_adapter(path.parent) and (fault := json_fault(path, object_problem)):
            return f"{path.relative_to(folder)} {fault}"
    for path in sorted(path for path in folder.glob("*") if path.is_dir()):
        if (path.name in _SHARDED or is_sharded(path)) and (fault := sharded_fault(path)):
            return f"{path.name}: {fault}"
    # Some releases of Accelerate look for it here, if "optimizer" is in the name of the folder.
    return sharded_fault(folder) if is_sharded(folder) else None


def _step_fault(path: Path) -> str | None:
    """What is wrong with the step: the stock Trainer would take training for completed."""
    state = json.loads(path.read_text(encoding="utf-8"))
    step, last = state["global_step"], state["max_steps"]
    named = re.fullmatch(r"checkpoint-(\d+)", path.parent.name)
    # A run that is resumed after its end does write one beyond max_steps, but named so.
    if 0 < last < step and named and int(named[1]) != step:
        return f"holds a global_step of {step}, beyond its max_steps of {last}"
    return None


def _misplaced(folder: Path) -> str | None:
    """A name of a checkpoint's file that is no file, or of its folder that is no folder.

    The stock Trainer overlooks it, and starts that part anew.
    """
    for path in sorted(folder.iterdir()):
        is_file = any(path.match(pattern) for pattern in _FILES)
        if is_file and not path.is_file():
            return f"{path.name} is {_what(path)} in place of a file"
        if any(path.match(pattern) for pattern in _FOLDERS) and not path.is_dir():
            return f"{path.name} is {_what(path)} in place of a folder"
    return None


def _what(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    if path.is_file():
        return "a file"
    return "a link to nothing" if path.is_symlink() else "something else"


def holds_deepspeed(folder: Path) -> bool:
    """Whether DeepSpeed has written its own folder into a checkpoint."""
    return any(path.is_dir() and any(path.iterdir()) for path in folder.glob(_DEEPSPEED))


def _adapter_folders(folder: Path) -> list[Path]:
    """Those that the stock Trainer loads, and those whose weights are lost."""
    named = (*_ADAPTERS, "adapter_config.json")
    return sorted({path.parent for name in named for path in folder.glob(f"*/{name}")})


def _holds_adapter(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in _ADAPTERS)


def _state_missing(folder: Path, weights_alone: bool) -> str | None:
    """The stock Trainer starts a fresh state and schedule if one of the two is missing."""
    files = [path for pattern in _STATES for path in folder.glob(pattern)]
    # Whether FSDP's folder is complete is told when it is read.
    has_state = any(path.is_file() for path in files) or (folder / "optimizer_0").is_dir()
    has_schedule = (folder / "scheduler.pt").is_file()
    # DeepSpeed keeps the schedule in its own files.
    if holds_deepspeed(folder):
        return None
    if not has_state and not has_schedule:
        return None if weights_alone else WEIGHTS_ALONE
    if not has_state:
        return "the optimizer's state is missing"
    return None if has_schedule else "scheduler.pt is missing"


def _newest_first(output_dir: Path) -> list[Path]:
    numbered = [
        (int(match.group(1)), path)
        for path in (output_dir.iterdir() if output_dir.is_dir() else ())
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]
