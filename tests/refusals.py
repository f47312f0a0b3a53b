"""How bad input must end: in one clear ConfigError."""

from __future__ import annotations

from typing import Any

import pytest

from hf_relopt.errors import ConfigError


def refused(build: Any, *words: str) -> str:
    """The ConfigError's text, which must have every word (regardless of case)."""
    with pytest.raises(ConfigError) as caught:
        build()
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert word.lower() in text.lower(), f"{word!r} is missing in: {text}"
    assert 20 < len(text) < 500 and "\n" not in text
    return text
