"""A text from a file, from the hub, or the source of Python's standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

PYTHON = "python"
# Characters of it, as many as tinyshakespeare has.
_LENGTH = 1_100_000
# Of sets that have several, the one that the papers read.
_PARTS = {"Salesforce/wikitext": "wikitext-2-v1"}


def text_of(source: str, split: str | None = None) -> str:
    """Read a text file, or the column `text` of a set on the hub.

    Args:
        source: "python", a file, or a hub name.
        split: "train" or "validation": of what has no such parts, the last tenth is to validate.
            None: all of it, of a set its training part.

    Raises:
        SystemExit: there is neither.
    """
    path = Path(source)
    if source == PYTHON or path.is_file():
        text = _standard_library() if source == PYTHON else path.read_text(encoding="utf-8")
        cut = len(text) * 9 // 10
        return {None: text, "train": text[:cut], "validation": text[cut:]}[split]
    from datasets import load_dataset

    try:
        rows = load_dataset(source, _PARTS.get(source), split=split or "train")
        return "".join(rows["text"])
    except Exception as error:
        raise SystemExit(
            f"--data {source}: no such file, and it cannot be read from the hub ({error}). Give a "
            "text file, or the name of a set with a column `text`, such as Salesforce/wikitext."
        ) from error


def _standard_library() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py"))
    return "".join(file.read_text(encoding="utf-8") for file in files)[:_LENGTH]
