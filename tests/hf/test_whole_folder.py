"""Folders that appear complete or not at all."""

from __future__ import annotations

import os

import pytest

from hf_relopt.errors import ConfigError, FormatError
from hf_relopt.hf.whole_folder import require_free, whole_folder
from tests.hf.compress_inputs import nothing_new


@pytest.mark.parametrize("name", ["new", "empty", "not/there/yet"])
def test_it_is_there_at_the_end_alone(name, tmp_path):
    (tmp_path / "empty").mkdir()
    place = tmp_path / name
    with whole_folder(place) as folder:
        (folder / "a.txt").write_text("a")
        assert folder.parent == place.parent and not (place / "a.txt").exists()
    assert (place / "a.txt").read_text() == "a"
    assert not folder.exists()
    umask = os.umask(0)
    os.umask(umask)
    assert place.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_what_fails_leaves_nothing(stop, tmp_path):
    with pytest.raises(stop), whole_folder(tmp_path / "new") as folder:
        (folder / "a.txt").write_text("a")
        raise stop
    assert nothing_new(tmp_path, set())


def test_what_is_there_is_kept(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="file is a file"):
        require_free(file)
    with pytest.raises(ConfigError, match="is a folder with files in it"), whole_folder(tmp_path):
        raise AssertionError
    with pytest.raises(FormatError, match=r"No folder can be made at .*file/new: "):
        whole_folder(file / "new").__enter__()
    (tmp_path / ".new.unfinished").mkdir()
    with pytest.raises(ConfigError, match=r"\.new\.unfinished is there: another command"):
        require_free(tmp_path / "new")
    assert nothing_new(tmp_path, {"file", ".new.unfinished"}) and file.read_text() == "mine"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="the folder that you are in"):
        require_free(tmp_path / "here")
