"""The record of a run survives whatever moment it is interrupted at."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from run_folder import FolderLock, RunFolder, whole_file, whole_folder

from hf_relopt.errors import ConfigError
from tests.recipes.recipe_calls import RECIPES

RECIPE = {"seed": 1}


def begun(path) -> RunFolder:
    folder = RunFolder(path)
    folder.check(RECIPE, overwrite=False)
    folder.begin(RECIPE, "command", overwrite=False)
    return folder


def test_new_folder_is_not_created_before_it_begins(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.check(RECIPE, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    folder.begin(RECIPE, "command", overwrite=False)
    assert RunFolder(tmp_path / "a" / "b").record["recipe"] == RECIPE


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as unfinished:
        unfinished.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"


def test_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "data") as unfinished:
        (unfinished / "one").touch()
        raise KeyboardInterrupt
    assert not (tmp_path / "data").exists()
    with whole_folder(tmp_path / "data") as unfinished:
        (unfinished / "two").touch()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["two"]


def test_killed_before_the_first_record_it_can_begin_again(tmp_path):
    (tmp_path / ".run.json.unfinished.json").write_text("{")
    assert begun(tmp_path).begun


def test_killed_while_emptying_the_rest_is_not_a_run_to_go_on_with(tmp_path):
    folder = begun(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    folder.note(finished=True)
    folder.note(being_emptied=True)  # and killed here
    again = RunFolder(tmp_path)
    assert not again.finished
    again.check({"seed": 2}, overwrite=False)
    again.begin({"seed": 2}, "command", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert RunFolder(tmp_path).record == {"recipe": {"seed": 2}, "command": "command"}


def test_emptying_does_not_follow_links(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    begun(tmp_path / "run")
    (tmp_path / "run" / "link").symlink_to(precious)
    RunFolder(tmp_path / "run").begin(RECIPE, "command", overwrite=True)
    assert (precious / "file").exists()
    assert not (tmp_path / "run" / "link").exists()


def test_damaged_record_is_reported(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json"):
        RunFolder(tmp_path)


def test_second_process_waits_for_the_first(tmp_path):
    first, second = FolderLock(), FolderLock()
    first.acquire(tmp_path, pytest.fail)
    said, entered = [], threading.Event()

    def come_second():
        second.acquire(tmp_path, said.append)
        entered.set()

    thread = threading.Thread(target=come_second)
    thread.start()
    assert not entered.wait(0.2)
    first.release()
    assert entered.wait(10)
    thread.join()
    second.release()
    assert len(said) == 1 and "another process" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_dead_process_is_gone(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(RECIPES), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    FolderLock().acquire(tmp_path, pytest.fail)


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from run_folder import FolderLock
lock = FolderLock()
lock.acquire(Path(sys.argv[2]), print)
print("held", flush=True)
time.sleep(60)
"""
