"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; put it in place of ``path`` when the block ends without an error."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    yield unfinished
    os.replace(unfinished, path)
