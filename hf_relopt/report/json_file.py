"""A JSON file that holds one object, or one message that says why it cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_relopt.errors import FormatError, one_line


def read_object(path: Path) -> dict[str, Any]:
    """Read a file.

    Raises:
        FormatError: it cannot be opened, is cut or is not one JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        cut = path.stat().st_size == 0 or "Unterminated" in str(error) or _ends_open(path)
        fault = "is cut" if cut else "is not JSON"
        raise FormatError(f"{path} {fault} ({one_line(error)}).") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} does not hold a JSON object.")
    return content


def _ends_open(path: Path) -> bool:
    return not path.read_bytes().rstrip().endswith(b"}")
