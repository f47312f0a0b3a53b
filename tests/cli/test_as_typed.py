"""Programs and files in the words by which the shell finds them from here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from hf_relopt.cli.as_typed import from_here, program_word, python_word


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a program that is not on PATH."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    return tool


def test_what_lies_below_is_named_from_here_and_what_does_not_in_full(here):
    assert from_here(str(here)) == str(Path("bin") / "tool")
    assert from_here(str(here.parents[2])) == str(here.parents[2])


def test_a_program_is_named_by_its_name_only_where_the_shell_finds_it(here, monkeypatch):
    assert program_word(str(here)) == str(Path("bin") / "tool")
    monkeypatch.setenv("PATH", str(here.parent))
    assert program_word(str(here)) == "tool"
    other = here.parents[1] / "other" / "tool"
    assert program_word(str(other)) == str(Path("other") / "tool")  # another file of that name


def test_python_is_named_by_the_word_that_starts_it(here, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert shutil.which(python_word()) == sys.executable
    monkeypatch.setenv("PATH", "")
    assert python_word() == sys.executable
