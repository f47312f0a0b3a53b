"""A text from a file, from the hub, or the source of Python's standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

PYTHON = "python"
# Characters of it, as many as tinyshakespeare has; the last tenth is to measure on.
_LENGTH = 1_100_000
# Of sets that have several, the one that the papers read.
_PARTS = {"Salesforce/wikitext": "wikitext-2-v1"}


def text_of(source: str, split: str) -> str:
    """Read a text file, or the column `text` of a set on the hub.

    Args:
        source: "python", a file, or a hub name.
        split: "train" or "validation"; a file is read whole.

    Raises:
        SystemExit: there is neither.
    """
    if source == PYTHON:
        text, cut = _standard_library(), _LENGTH * 9 // 10
        return text[:cut] if split == "train" else text[cut:]
    path = Path(source)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    from datasets import load_dataset

    try:
        rows = load_dataset(source, _PARTS.get(source), split=split)
        return "".join(rows["text"])
    except Exception as error:
        raise SystemExit(
            f"--data {source}: no such file, and it cannot be read from the hub ({error}). Give a "
            "text file, or a hub name such as Salesforce/wikitext or karpathy/tiny_shakespeare."
        ) from error


def _standard_library() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py"))
    return "".join(file.read_text(encoding="utf-8") for file in files)[:_LENGTH]
