"""The versions that are supported are said once in the code; everything else agrees with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_relopt.hf import registration

ROOT = Path(__file__).resolve().parents[1]
OLDEST, NEWEST = (".".join(map(str, v)) for v in (registration.OLDEST, registration.NEWEST))


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


# pip reads these, and so nothing of ours checks them again.
NEEDS = dict(re.findall(r'^    "([a-z_]+)>=([\d.]+)",', read("pyproject.toml"), re.MULTILINE))
ACCELERATE = NEEDS["accelerate"]


def test_supported_is_made_of_them():
    assert f"{OLDEST} to {NEWEST}" == registration.SUPPORTED


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_pages_name_them(page):
    assert f"transformers {registration.SUPPORTED}" in read(page)


def test_no_page_names_others():
    """A page that is about one release says so in other words."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        text = page.read_text("utf-8")
        ranges = re.findall(r"transformers (\d+\.\d+ to \d+\.\d+)", text)
        assert set(ranges) <= {registration.SUPPORTED}, page
        least = re.findall(r"accelerate ?(?:>=|≥) ?(\d+\.\d+)", text)
        assert not least or ACCELERATE in least, page


def test_requirements_are_the_oldest():
    assert NEEDS["transformers"] == OLDEST


def test_ci_tests_both_ends():
    jobs = re.findall(r"^ +- \{ (name: .*) \}", read(".github/workflows/ci.yml"), re.MULTILINE)
    oldest, pinned, newest = jobs
    assert f'transformers: "{OLDEST}.0", accelerate: "{ACCELERATE}.0"' in oldest
    assert 'transformers: "", accelerate: ""' in pinned
    assert f'transformers: "{NEWEST}.0", accelerate: ""' in newest
    assert f"TRANSFORMERS={OLDEST}.0 ACCELERATE={ACCELERATE}.0" in read("CONTRIBUTING.md")
