"""A file appears complete, or the one before stays."""

from __future__ import annotations

import pytest

from hf_relopt.whole_file import whole_file


def test_it_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "x.txt"
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_one_before(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), whole_file(path) as unfinished:
        unfinished.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old"
