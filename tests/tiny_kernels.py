"""Tests use tiny tensors: let them meet the compiled kernels, which else leave those alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hf_relopt.backends import compiled


@pytest.fixture(autouse=True, scope="module")
def compiled_kernels_for_tiny_tensors() -> Iterator[None]:
    """For a conftest to import: it holds in that folder. Programs are kept for the session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_SMALLEST", 2)
        yield
