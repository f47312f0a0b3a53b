"""What a run ran on and with: command, machine, launch mode, versions, git commit."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState

from hf_relopt.version import __version__

GIT_SECONDS = 5
PACKAGES = ("transformers", "accelerate", "torch", "datasets", "tokenizers", "peft", "trl")
_LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun"}
_LAUNCHER_MODULES = {
    "torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli", "hf_relopt.cli.launch",
}  # fmt: skip
# A card is published: a value behind such a flag, and whatever looks like a token, stays out.
_SECRET_FLAG = re.compile(r"(token|passw|secret|api[-_]?key|credential)", re.IGNORECASE)
_COUNTS = re.compile(r"(num|max|min|new)_?\w*tokens?|tokens?_(per|to)_\w+|tokens$|tokenizer", re.I)
_SECRET = re.compile(r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,})")


def command() -> str | None:
    """The command that started this run, as it can be typed again; None in a notebook.

    Tokens and passwords are left out. Paths below the working directory become relative to it.
    """
    words = list(getattr(sys, "orig_argv", sys.argv))
    if any("ipykernel" in word or "colab_kernel" in word for word in words[:4]):
        return None
    parent = _words_of_parent()
    words = _typed(parent if _is_launcher(parent) else words)
    return shlex.join(without_secrets(["hf-relopt", "run", *words] if _has_door() else words))


def _has_door() -> bool:
    """Whether `hf-relopt run` started this process."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return any(Path(path).parts[-2:] == ("hf_relopt", "autoload") for path in paths)


def _is_launcher(words: Sequence[str]) -> bool:
    names = {Path(word).name for word in words[:2]}
    return bool(names & _LAUNCHERS or _LAUNCHER_MODULES & set(words[:5]))


def _words_of_parent() -> list[str]:
    try:
        import psutil

        return psutil.Process(os.getppid()).cmdline()
    except Exception:  # gone, or somebody else's: nothing that a training may fail for
        return []


def without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command with ``***`` in place of tokens and passwords."""
    found: list[str] = []
    hide = False
    for word in words:
        flag, equals, _ = word.partition("=")
        is_secret = bool(_SECRET_FLAG.search(flag)) and not _COUNTS.search(flag)
        if hide and not word.startswith("-"):
            word = "***"
        elif equals and is_secret:
            word = f"{flag}=***"
        hide = is_secret and not equals and word.startswith("-")
        found.append(_SECRET.sub("***", word))
    return found


def _typed(words: Sequence[str]) -> list[str]:
    """Programs by their names, paths relative to the working directory."""
    if not words:
        return []
    here = os.getcwd().rstrip(os.sep) + os.sep
    python, *rest = words
    if rest and Path(rest[0]).is_absolute() and Path(rest[0]).parent == Path(python).parent:
        return [Path(rest[0]).name, *(word.replace(here, "") for word in rest[1:])]
    python = Path(python).name if Path(python).is_absolute() else python
    return [python, *(word.replace(here, "") for word in rest)]


def launch(args: Any) -> dict[str, Any]:
    """How the run is spread over processes.

    Args:
        args: its TrainingArguments.
    """
    state = PartialState()
    return {
        "mode": _mode(args, state),
        "processes": state.num_processes,
        "backend": getattr(state, "backend", None),
    }


def _mode(args: Any, state: PartialState) -> str:
    # A Trainer has made it; the accessor would make another one.
    whole = AcceleratorState() if AcceleratorState._shared_state else None
    kind = str(getattr(whole or state, "distributed_type", "")).rpartition(".")[2]
    sizes = getattr(whole, "parallelism_config", None)
    tensor = getattr(sizes, "tp_size", 1) or 1
    if kind == "FSDP":
        plugin = getattr(whole, "fsdp_plugin", None)
        replicas = getattr(sizes, "dp_replicate_size", 1) or 1
        version = getattr(plugin, "fsdp_version", 1)
        mode = "FSDP1" if version != 2 else "HSDP" if replicas > 1 else "FSDP2"
    elif kind in ("DEEPSPEED", "MEGATRON_LM"):
        mode = {"DEEPSPEED": "DeepSpeed"}.get(kind, "Megatron-LM")
    elif state.num_processes > 1:
        mode = "tensor parallel" if tensor == state.num_processes else "DDP"
    else:
        mode = "DataParallel" if getattr(args, "n_gpu", 1) > 1 else "single process"
    shared = tensor > 1 and mode != "tensor parallel"
    return f"{mode}, tensor parallel over {tensor}" if shared else mode


def hardware(args: Any) -> dict[str, Any]:
    """The devices of the run; memory is one device's, or the machine's on a CPU."""
    device = args.device
    processes = PartialState().num_processes
    memory: float | None
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), _cuda_memory(device)
    else:
        name, memory = ("CPU" if device.type == "cpu" else device.type), _memory()
    count = 1 if device.type == "cpu" else processes * max(1, getattr(args, "n_gpu", 1))
    return {"device": name, "count": count, "cpu": _cpu(), "memory_gb": memory}


def _cuda_memory(device: Any) -> float:
    return round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _cpu() -> str:
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        name = " ".join(found[1].split()) if found else name
    except OSError:
        pass
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


def versions() -> dict[str, str]:
    """Versions of this package and of those that the run has imported."""
    loaded = {name: sys.modules.get(name) for name in PACKAGES}
    found = {name: getattr(module, "__version__", None) for name, module in loaded.items()}
    return {
        "hf_relopt": __version__,
        **{name: str(version) for name, version in found.items() if version},
        "python": platform.python_version(),
    }


def git(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit of the repository that the training script is in, else the working directory's.

    Args:
        folder: where to look instead.

    Returns:
        "commit" and "dirty" (tracked files have changes; None if that took too long); None where
        there is no repository.
    """
    script = Path(sys.argv[0] if sys.argv else "").absolute().parent
    for place in [folder] if folder else [script, Path.cwd()]:
        commit = _git(place, "rev-parse", "HEAD")
        if commit:
            changes = _git(place, "status", "--porcelain", "--untracked-files=no")
            return {"commit": commit, "dirty": None if changes is None else bool(changes)}
    return None


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, timeout=GIT_SECONDS, check=True,
            # Reading takes no lock that a person's own git would wait for.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout.strip()
