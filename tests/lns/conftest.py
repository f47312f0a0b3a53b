"""Formats to test with: the named ones, and one per tensor."""

from __future__ import annotations

import pytest

from hf_relopt.lns.format import FORMATS, LNSFormat

EVERY = [*FORMATS.values(), LNSFormat("wide", 8, 0.3, scale="tensor")]


@pytest.fixture(params=EVERY, ids=lambda form: form.name)
def form(request: pytest.FixtureRequest) -> LNSFormat:
    found: LNSFormat = request.param
    return found
