"""python_text.py writes what is installed as two texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.scripts import start


def test_a_package_is_cut_into_two_texts(
    load, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    script = load("python_text")
    start(monkeypatch, script, "--package", "json", "--package", "email", "--out", tmp_path)
    train, valid = ((tmp_path / name).read_text("utf-8") for name in ("train.txt", "valid.txt"))
    assert Path(json.decoder.__file__).read_text("utf-8") in train
    files = [
        text for package in ("json", "email") for text in script.sources(script.folder(package))
    ]
    assert len(train) + len(valid) == sum(map(len, files))
    assert 0 < len(valid) < len(train)
    assert "train.txt" in capsys.readouterr().out


def test_what_is_installed_beside_the_standard_library_is_left_out(load, tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "site-packages/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "latin.py").write_bytes("# ä".encode("latin-1"))
    assert list(load("python_text").sources(tmp_path)) == ["a.py", "b.py"]


def test_an_unknown_package_is_named(load, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="--package nonesuch: no such package"):
        start(monkeypatch, load("python_text"), "--package", "nonesuch")
