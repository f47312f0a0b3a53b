"""The text of the Python standard library: real text that is on every machine with Python."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from hf_relopt.errors import ConfigError

# Not written to be read (tables, generated files), not the library's own, or tests of it.
LEFT_OUT = {
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test",
    "encodings", "pydoc_data", "lib2to3",
}  # fmt: skip


def standard_library_files() -> tuple[Path, list[Path]]:
    """Where the standard library is, and its source files, in a fixed order.

    Raises:
        ConfigError: if this Python has no source text (a zipped or stripped installation).
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in folder.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(folder).parts[:-1])
        and not path.name.startswith("_sysconfigdata")
        and path.stat().st_size > 0
    ]
    if len(files) < 100:
        raise ConfigError(
            f"this Python has no source text of its standard library in {folder} ({len(files)} "
            "files). Pass a text with --train_file or --dataset_name."
        )
    return folder, sorted(files, key=lambda path: path.relative_to(folder).as_posix())
