"""A file of finished runs, one JSON object per line, and the facts a result must carry.

Every benchmark appends a line when a run ends and skips runs whose key is already there, so a
benchmark that was killed goes on where it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"
MONTH = time.strftime("%Y%m")


class RunLog:
    """The JSON-lines file of one benchmark.

    Args:
        path: the file; its folder is made when the first run ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Now, not when a run ends: the commit may have moved on by then, the code in memory not.
        self.where = surroundings()

    def records(self) -> list[dict[str, Any]]:
        """All finished runs, in the order they ended. A half-written last line is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                # The machine stopped while this line was written: that run is repeated.
                continue
        return records

    def finished(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The record of the run with exactly this key, or None."""
        for record in self.records():
            if record["key"] == key:
                return record
        return None

    def append(self, key: dict[str, Any], figures: dict[str, Any]) -> None:
        """Add one finished run. Two processes may append to one file at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, **figures, "where": self.where})
        with self.path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, 2)
            text = "\n" if self._ends_mid_line() else ""
            file.write(text + line + "\n")

    def _ends_mid_line(self) -> bool:
        with self.path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return False
            file.seek(-1, 2)
            return file.read(1) != b"\n"


def surroundings() -> dict[str, Any]:
    """Command, commit, versions, hardware and threads of this process."""
    return {
        "command": command(),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
    }


def command() -> str:
    """The command line for a shell, absolute paths cut down to the files' names."""
    ranks = os.environ.get("WORLD_SIZE")  # torchrun's word
    start = f"torchrun --standalone --nproc_per_node {ranks}" if ranks else "python"
    return f"{start} {shlex.join(_without_folders(sys.argv))}"


def commit() -> str:
    """The commit of this repository; "uncommitted" if there is none or these files differ."""
    folder = Path(__file__).resolve().parent.parent
    try:
        head = _git(folder, "rev-parse", "--short", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", "hf_relopt", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "uncommitted"
    return f"{head} and uncommitted changes" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "hf_relopt", "torchao", "pytorch_optimizer"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """One line about the processor, or the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return name
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    virtual = any(line.startswith("flags") and " hypervisor" in line for line in lines)
    if not models:
        return name
    kind = "cores of a shared {} virtual machine" if virtual else "cores of {}"
    return f"{len(models)} " + kind.format(models[0])


def markdown_table(header: list[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table of the given cells."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write_report(
    path: Path, title: str, setting: str, table: str, reading: str, wheres: list[dict[str, Any]]
) -> None:
    """Write one results page: title, setting, table, reading, command, versions, hardware.

    Args:
        path: the Markdown file. A reading that a person wrote there is kept.
        title: the heading.
        setting: a few sentences on what was run.
        table: a Markdown table.
        reading: what to make of it; used only if the file has no section "Reading" yet.
        wheres: `surroundings()` of every run in the table.
    """
    kept = _section(path, "## Reading") or reading
    # Older records do not say by which command they were made.
    commands = dict.fromkeys(where.get("command", command()) for where in wheres) or [command()]
    facts = ["- command: " + "; ".join(f"`{text}`" for text in commands)]
    for name in ("commit", "hardware", "threads", "versions"):
        values = sorted({_plain(where[name]) for where in wheres if where.get(name)})
        facts.append(f"- {name}: " + "; ".join(values))
    parts = [f"# {title}", setting, table, "## Reading\n" + kept.strip(), "## Run\n"]
    text = "\n\n".join(parts) + "\n".join(facts) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _section(path: Path, heading: str) -> str:
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    if heading not in text:
        return ""
    return text.split(heading, 1)[1].split("\n## ", 1)[0].strip()


def _without_folders(arguments: list[str]) -> list[str]:
    # Absolute paths are one machine's business; a result names the files only.
    script = "benchmarks/" + Path(arguments[0]).name
    return [script] + [Path(a).name if a.startswith("/") else a for a in arguments[1:]]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {text}" for name, text in value.items())
    return str(value)
