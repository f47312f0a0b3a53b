"""What a process holds of the memory, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def status(pid: int | str) -> dict[str, int]:
    """The lines of /proc that are sizes, in bytes; empty when the process is gone.

    Args:
        pid: of a process, or "self".
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    rows = [line.split() for line in text.splitlines() if line.endswith("kB")]
    return {name.rstrip(":"): 1024 * int(value) for name, value, *_ in rows}
