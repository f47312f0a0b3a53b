"""The file of --accelerate is found by its path or its shipped name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_relopt import shipped
from tests.cli.doctor_calls import FSDP2, facts, fails

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_names_of_shipped_configurations(monkeypatch, tmp_path, written, capsys):
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "package")
    assert "ships no configuration" in fails(capsys, accelerate="mine")
    folder = tmp_path / "recipes" / "accelerate"
    folder.mkdir(parents=True)
    Path(written(**FSDP2)).rename(folder / "mine.yaml")
    assert facts("mine")["launch"]["source"] == "mine"
    assert "mine" in fails(capsys, accelerate="yours").partition("one of these names")[2]


def test_a_folder_with_a_shipped_name_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "fsdp2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert facts("fsdp2")["launch"]["mode"] == "FSDP2"


@pytest.mark.parametrize(
    ("make", "words"), [(os.mkdir, "is a directory"), (os.mkfifo, "is not a regular file")]
)
def test_what_is_no_file_is_no_configuration(make, words, tmp_path, capsys):
    make(tmp_path / "here")
    assert words in fails(capsys, accelerate=str(tmp_path / "here"))
