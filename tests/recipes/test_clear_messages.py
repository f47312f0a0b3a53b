"""How a recipe ends when it is told to, when the disk is full, and what a launcher makes of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pretrain_clm
import pytest
from clear_messages import Stopped, mendable, one_clear_message
from run_folder import RunFolder

from hf_relopt.errors import ConfigError
from hf_relopt.hf.launcher import _of_one, _of_several, launch
from tests.recipes.recipe_calls import RECIPES, ROOT, Background, tiny_pretraining

LAUNCH = [sys.executable, "-m", "hf_relopt.cli.launch", "--num_machines", "1", "--mixed_precision",
          "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]  # fmt: skip
ONE = [*LAUNCH, "--num_processes", "1"]
TWO = [*LAUNCH, "--multi_gpu", "--num_processes", "2"]


# Tests that run in the background ignore SIGINT, and what they start inherits that. Done here and
# not between fork and exec: another test's library may have threads that a fork would break.
AS_FROM_A_SHELL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a recipe in a group of processes of its own, as a shell does; a failed test ends it."""
    begun: list[subprocess.Popen[str]] = []

    def begin(launcher: list[str], arguments: list[str]) -> subprocess.Popen[str]:
        script = str(RECIPES / "pretrain_clm.py")
        process = subprocess.Popen(
            [sys.executable, "-c", AS_FROM_A_SHELL, *launcher, script, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def long_run(text: Path, folder: Path, **more: object) -> list[str]:
    return tiny_pretraining(
        text, folder,
        **{"max_steps": 100_000, "save_steps": 10, "eval_steps": 100_000, "logging_steps": 1000,
           **more},
    )  # fmt: skip


def until_a_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    # Two of them: the last one may still be being written.
    while len(list(folder.glob("checkpoint-*/trainer_state.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def last_words(process: subprocess.Popen[str]) -> str:
    """The one line about its end; whatever else stands on stderr is of before."""
    out, err = process.communicate(timeout=120)
    return one_line(out, err)


def one_line(out: str, err: str) -> str:
    said = [line for line in err.splitlines() if line.startswith("pretrain_clm.py: ")]
    assert "Traceback" not in out + err, err
    assert len(said) == 1, err
    assert err.splitlines()[-1] == said[0]
    return said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number", "to_the_group"),
    [
        pytest.param(ONE, signal.SIGINT, True, id="Ctrl-C under a launcher"),
        pytest.param(
            TWO, signal.SIGTERM, False, id="SIGTERM, two processes", marks=pytest.mark.dist
        ),
    ],
)
def test_a_signal_ends_it_with_one_line_and_its_code(
    launcher, number, to_the_group, begin, tiny_text, tmp_path
):
    folder = tmp_path / "run"
    process = begin(launcher, long_run(tiny_text, folder))
    until_a_checkpoint(folder, process)
    (os.killpg if to_the_group else os.kill)(process.pid, number)
    words = last_words(process)
    assert process.returncode == 128 + number
    assert "stopped at step " in words and "; the same command resumes from checkpoint-" in words
    named = folder / words.rpartition(" ")[2]
    assert (named / "trainer_state.json").is_file()
    assert not RunFolder(folder).finished
    with pytest.raises(ProcessLookupError):  # nobody of the group is left behind
        os.killpg(process.pid, 0)


def listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM, which Python itself has not."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_before_the_first_checkpoint_it_says_so(tiny_text, tmp_path):
    arguments = long_run(tiny_text, tmp_path / "run", save_steps=100_000)
    background = Background("pretrain_clm.py", arguments, tmp_path)
    background.until(lambda: "\nstep " in background.out)
    assert background.end(signal.SIGINT) == 130
    words = one_line(background.out, background.errors)
    assert "there is no checkpoint yet, so the same command starts over" in words


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_while_it_still_loads_nothing_is_at_stake(begin, tiny_text, tmp_path):
    process = begin([sys.executable], long_run(tiny_text, tmp_path / "run"))
    while not listens(process.pid):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert last_words(process) == (
        "pretrain_clm.py: stopped before the training began; the same command starts it"
    )
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.dist
def test_a_mistake_comes_through_a_launcher(begin, tmp_path):
    """A mistake that only the reading of the data shows, so that all ranks are under way."""
    (tmp_path / "short.txt").write_text("too short\n")
    arguments = tiny_pretraining(tmp_path / "short.txt", tmp_path / "run")
    process = begin(TWO, arguments)
    assert "error: there is no text in the validation split" in last_words(process)
    assert process.returncode == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_processes", "many"], "invalid int value: 'many'"),
        (["--config_file", "/nosuch.yaml"], "/nosuch.yaml"),
        (["--cpu", "--multi_gpu", "--num_processes", "2"], "at a time"),
    ],
)
def test_a_launcher_s_own_mistake_is_one_sentence(flags, words, monkeypatch):
    with pytest.raises(ConfigError, match=words) as error:
        launch([*flags, "script.py"])
    assert "\n" not in str(error.value)


def test_of_several_the_one_that_failed_by_itself_counts():
    class Failure(NamedTuple):
        exitcode: int

    failures = {0: Failure(-15), 1: Failure(2), 2: Failure(143)}
    assert _of_several(failures) == (2, "")
    code, line = _of_several({0: Failure(143), 1: Failure(-9)})
    assert code == 137 and "rank 1: the script was ended by SIGKILL" in line
    assert _of_several({0: Failure(130), 1: Failure(-2)}) == (130, "")
    assert (_of_one(3), _of_one(-15)) == ((3, ""), (143, ""))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_costs_nothing(tiny_text, tmp_path, capsys):
    """Files cannot grow: the data fits and the weights do not, so a checkpoint is half written."""
    folder = tmp_path / "run"
    wide = {"config_overrides": "n_layer=1,n_embd=64,n_head=2", "save_steps": 2, "max_steps": 4}
    arguments = tiny_pretraining(tiny_text, folder, **wide)
    background = Background("pretrain_clm.py", arguments, tmp_path, largest_file=200_000)
    assert background.end() == 1
    words = one_line(background.out, background.errors)
    assert f"cannot read or write {folder}" in words and "File too large" in words
    assert "It failed at step 2; there is no checkpoint yet" in words
    # With room, the same command does what it would have done.
    pretrain_clm.main(arguments)
    out = capsys.readouterr().out
    assert "Done: 4 steps" in out and "resuming the run" in out


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x", "/d/f"), "/d/f: No space left on device. Free some space"),
        (OSError(errno.EDQUOT, "x"), "/run: Disk quota exceeded"),
        (PermissionError(errno.EACCES, "x", "/d"), "/d: Permission denied"),
        (OSError(errno.EROFS, "x", "/d"), "/d: Read-only file system"),
        (Exception("I/O error: No space left on device (os error 28)"), "No space left"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1"), "cannot read or write"),
        (FileNotFoundError(errno.ENOENT, "x", "/run/a"), "/run/a was removed while"),
        (FileNotFoundError(errno.ENOENT, "x", "/else/a"), None),
        (ConnectionResetError(errno.ECONNRESET, "x"), None),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("x"), None),
    ],
)
def test_which_errors_a_person_can_mend(error, words):
    found = mendable(error, Path("/run"))
    assert found is None if words is None else words in found


def test_the_cause_counts_too():
    try:
        try:
            raise OSError(errno.ENOSPC, "x", "/d/f")
        except OSError as cause:
            raise RuntimeError("serialization failed") from cause
    except RuntimeError as error:
        assert "/d/f" in mendable(error, None)


def test_a_bug_keeps_its_stack_trace():
    with pytest.raises(ZeroDivisionError), one_clear_message():
        raise ZeroDivisionError


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_process_of_several_speaks_first(rank, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("clear_messages.PATIENCE", 0.01)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit), one_clear_message():
            raise ConfigError("no")
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    assert ("rank 1: error: no" in capsys.readouterr().err) == (rank == "1")


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    at_start = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT)
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with one_clear_message():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # nohup stays nohup
            assert signal.getsignal(signal.SIGINT) is not before
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGTERM, ignored)
        signal.signal(signal.SIGINT, at_start)


def test_the_codes_are_the_shell_s():
    assert (Stopped(signal.SIGINT).code, Stopped(signal.SIGTERM).code) == (130, 143)
