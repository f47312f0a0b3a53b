"""The page around the figures, and where it may be written."""

from __future__ import annotations

import os
import re

import pytest

from hf_relopt.errors import ConfigError
from hf_relopt.report.page import check_place, notice, whole_page, write_page


def test_the_page_asks_for_nothing_from_elsewhere():
    page = whole_page("a", [])
    assert not re.findall(r"(?:src|href)=\"(?!data:,\")|url\(|@import|https?://", page)
    assert "default-src 'none'" in page and '<html lang="en">' in page


def test_the_title_is_escaped():
    assert "<title>a &lt;b&gt;</title>" in whole_page("a <b>", [])


def test_a_box_without_lines_is_none():
    assert notice("Missing", []) == "" and notice("Missing", ["x"]) != ""


def test_a_page_of_ours_is_replaced_and_another_file_is_kept(tmp_path):
    path = tmp_path / "report.html"
    write_page(whole_page("one", []), path)
    write_page(whole_page("two", []), path)
    assert "<title>two" in path.read_text() and os.listdir(tmp_path) == ["report.html"]
    path.write_text("<html>mine</html>")
    with pytest.raises(ConfigError, match="no page of hf-relopt"):
        write_page(whole_page("three", []), path)
    assert path.read_text() == "<html>mine</html>"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "a folder. Pass a file"),
        ("none/report.html", "there is no folder"),
        ("file/report.html", "there is no folder"),
        ("x" * 300, "cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_to(tmp_path, out, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=message):
        check_place(tmp_path / out)
    with pytest.raises(ConfigError, match=message):
        write_page(whole_page("a", []), tmp_path / out)


def test_a_folder_on_which_nothing_can_be_written_is_named():
    # Root may write everywhere but here.
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(whole_page("a", []), __import__("pathlib").Path("/proc/report.html"))


def test_lone_surrogates_of_a_folders_name_do_not_stop_the_page(tmp_path):
    write_page(whole_page("a\udcff", ["b\udcff"]), tmp_path / "report.html")
