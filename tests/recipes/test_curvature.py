"""The script: its flags, what it writes, and that it repeats nothing."""

from __future__ import annotations

import os
import signal

import clear_messages
import curvature
import curvature_walk
import pytest
from curvature_log import CellLog

from tests.recipes.recipe_calls import refusal

TINY = [
    "--side", "4", "--depths", "2", "3", "--seeds", "0", "--steps", "0", "2", "--per_decade", "1",
    "--pictures", "32", "--batch", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A folder with the eight networks of TINY."""
    folder = tmp_path_factory.mktemp("curvature") / "run"
    curvature.main([*TINY, "--output_dir", str(folder)])
    return folder


def test_the_defaults_are_the_networks_of_the_paper_and_a_minute():
    args = curvature.read_flags([])
    found = curvature.all_settings(args)
    assert {(each.depth, each.kind) for each in found} == {
        (depth, kind) for depth in (2, 16) for kind in ("plain", "residual")
    }
    assert len(found) == 24 and str(args.output_dir) == "runs/curvature"


def test_it_writes_points_tables_and_pictures(walked):
    assert sorted(path.name for path in walked.iterdir()) == [
        "cells.jsonl", "curvature-0-steps.png", "curvature-2-steps.png", "curvature.md"
    ]  # fmt: skip
    records = CellLog(walked / "cells.jsonl").records()
    assert len(records) == 8
    assert all(len(record["points"]) == 5 for record in records)
    assert "| 2 | 3, residual |" in (walked / "curvature.md").read_text()


def test_a_second_start_measures_nothing_and_writes_the_same(walked, monkeypatch, capsys):
    monkeypatch.setattr(curvature_walk, "measured_cell", pytest.fail)
    before = (walked / "curvature.md").read_text()
    (walked / "curvature.md").unlink()
    curvature.main([*TINY, "--output_dir", str(walked)])
    assert (walked / "curvature.md").read_text() == before
    assert "8 of 8 networks are finished already" in capsys.readouterr().out


def test_other_networks_are_added_and_the_tables_show_those_that_were_asked_for(
    walked, tmp_path, capsys
):
    folder = tmp_path / "run"
    folder.mkdir()
    whole = (walked / "cells.jsonl").read_bytes()
    (folder / "cells.jsonl").write_bytes(whole[:-30])  # and the last one was torn
    words = [*TINY, "--depths", "3", "--kinds", "residual", "--seeds", "0", "1"]
    curvature.main([*words, "--output_dir", str(folder)])
    assert "1 of 4 networks are finished already" in capsys.readouterr().out
    assert len(CellLog(folder / "cells.jsonl").records()) == 7 + 3
    assert "2, plain" not in (folder / "curvature.md").read_text()


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_does_the_rest(
    tmp_path, monkeypatch, capsys
):
    real, done = curvature_walk.measured_cell, []

    def interrupted(settings, *rest):
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        done.append(settings)
        return real(settings, *rest)

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(clear_messages, "leave_at_once", leave)
    monkeypatch.setattr(curvature_walk, "measured_cell", interrupted)
    words = [*TINY, "--kinds", "plain", "--output_dir", str(tmp_path)]
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as end:
            curvature.main(words)
    finally:
        signal.signal(signal.SIGINT, before)  # a process that was told to end keeps the handler
    assert end.value.code == 130
    assert "2 finished networks are in" in capsys.readouterr().err
    assert len(CellLog(tmp_path / "cells.jsonl").records()) == 2
    monkeypatch.setattr(curvature_walk, "measured_cell", lambda *a: done.append(a[0]) or real(*a))
    done.clear()
    curvature.main(words)
    assert len(done) == 2 and (tmp_path / "curvature.md").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--depths 0", "--depths is 0; it takes 1 or more"),
        ("--depths", "expected at least one argument"),
        ("--depths two", "invalid int value: 'two'"),
        ("--steps -1", "--steps is -1; it takes 0 or more"),
        ("--seeds 0 -3", "--seeds is -3"),
        ("--kinds round", "invalid choice: 'round'"),
        ("--lr 1", "Fromage takes 0 <= lr < 1"),
        ("--lr nan", "Fromage takes 0 <= lr < 1"),
        ("--batch 0", "--batch is 0"),
        ("--side 0", "--side is 0"),
        ("--side 9", "--side can be 8 at most, not 9"),
        ("--pictures 0", "--pictures is 0"),
        ("--per_decade 0", "--per_decade is 0"),
        ("--depth 3", "unrecognized arguments: --depth 3"),
        ("--data nowhere/set.npz", "there is no file"),
        ("--output_dir FILE", "a file. Pass a folder"),
    ],
)
def test_a_mistake_ends_with_one_line_before_anything_is_written(words, message, tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    given = [str(file) if word == "FILE" else word for word in words.split()]
    if "--output_dir" not in given:
        given += ["--output_dir", str(tmp_path / "run")]
    assert message in refusal(curvature.main, given, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_with_another_file_of_that_name_is_refused(tmp_path, capsys):
    (tmp_path / "cells.jsonl").write_text("mine\n")
    words = [*TINY, "--output_dir", str(tmp_path)]
    assert "holds no cells of this script" in refusal(curvature.main, words, capsys)
    assert (tmp_path / "cells.jsonl").read_text() == "mine\n"


def test_networks_that_cannot_be_walked_from_leave_tables_without_them(
    tmp_path, monkeypatch, capsys
):
    found = {"loss": 2.3, "accuracy": 0.1, "points": [], "fault": "no direction"}
    monkeypatch.setattr(curvature_walk, "measured_cell", lambda *_: found)
    curvature.main([*TINY, "--output_dir", str(tmp_path)])
    assert "no direction" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.jsonl", "curvature.md"]


def test_help_says_what_is_written_and_shows_every_default(capsys):
    with pytest.raises(SystemExit) as end:
        curvature.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for words in ("cells.jsonl", "resumes", "(default: 2 16)", "(default: digits)", "N^2 wide"):
        assert words in text
