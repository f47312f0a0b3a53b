"""Programs and files as a user can type them again in this directory."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def python_word() -> str:
    """The Python that runs."""
    for word in ("python", "python3"):
        if shutil.which(word) == sys.executable:
            return word
    return from_here(sys.executable)


def program_word(path: str) -> str:
    """A program: its name if the shell finds this very file by it, else its path."""
    name = Path(path).name
    return name if shutil.which(name) == path else from_here(path)


def from_here(path: str) -> str:
    """A path relative to the working directory if it lies below it, else as it is."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return path if relative.startswith("..") else relative
