"""The file of finished cells of curvature.py, one JSON object per line.

A cell is written when it is complete, so a start after an interruption does only the missing ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_relopt.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]


class CellLog:
    """Reads and appends cells. benchmarks/curvature_record.py passes its RunLog in its place.

    Args:
        path: the file; its folder is made at once, so that a place that is none is said early.

    Raises:
        ConfigError: a file that some other program wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._check()

    def records(self) -> list[dict[str, Any]]:
        """All finished cells, in the order they ended; a half-written line is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text("utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the machine stopped while this line was written: that cell is repeated
            if isinstance(record, dict) and {"key", "points"} <= record.keys():
                records.append(record)
        return records

    def finished(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The cell with exactly this key, or None."""
        return next((record for record in self.records() if record["key"] == key), None)

    def append(self, key: dict[str, Any], cell: dict[str, Any]) -> None:
        """Add one finished cell. Two processes may append to one file at once."""
        with self.path.open("a+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, 2)
            if size:
                file.seek(size - 1)
            begin = b"" if not size or file.read(1) == b"\n" else b"\n"
            file.write(begin + json.dumps({"key": key, **cell}).encode() + b"\n")

    def _check(self) -> None:
        if self.path.exists() and self.path.stat().st_size > 0 and not self.records():
            begin = self.path.read_bytes()[:8]
            # A first cell that was cut off is the only one that may have no complete line.
            if not begin.startswith(b'{"key": '[: len(begin)]):
                raise ConfigError(
                    f"{self.path} holds no cells of this script. Move it away, or use another "
                    "--output_dir."
                )
