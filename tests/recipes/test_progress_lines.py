"""What a running training shows: lines, a bar on a terminal, the clock."""

from __future__ import annotations

import os
import pty
import sys
from contextlib import contextmanager

import pytest
from progress_lines import Bar, ProgressLines, duration, is_terminal, seconds_trained
from transformers import TrainerControl, TrainerState, TrainingArguments


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7_260, "2 h 1 min")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_line_of_a_step(tmp_path, capsys):
    lines = ProgressLines("tokens", 1000)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(max_steps=200, global_step=0, is_world_process_zero=True)
    lines.on_train_begin(args, state, TrainerControl())
    state.global_step = 50
    logs = {"loss": 2.5, "learning_rate": 0.015, "relative_update": 0.0151, "at_bound": 0.25}
    state.log_history.append(dict(logs))
    lines.on_log(args, state, TrainerControl(), logs=logs)
    line = capsys.readouterr().out.splitlines()[-1]
    for words in ("step  50/200", "loss 2.500", "lr 0.015", "relative update 0.0151",
                  "at bound 25.0%", "tokens/s", "left"):  # fmt: skip
        assert words in line


def test_a_line_leaves_out_what_the_picture_and_the_file_show(tmp_path, capsys):
    lines = ProgressLines("tokens", 1000)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(max_steps=2, global_step=0, is_world_process_zero=True)
    lines.on_train_begin(args, state, TrainerControl())
    logs = {"loss": 2.5, "relative_update": 0.01, "relative_update/matrix": 0.011}
    logs |= {"relative_update_p50": 0.012, "step_drt": 0.3, "mean_token_accuracy": 0.4}
    state.log_history.append(dict(logs))
    lines.on_log(args, state, TrainerControl(), logs=logs)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "relative update 0.01  mean_token_accuracy 0.4  " in line and "0.3" not in line


def test_clock_goes_on_after_a_restart(tmp_path):
    lines = ProgressLines("texts", 1)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(max_steps=9, global_step=5, log_history=[{"step": 5, "seconds": 100.0}])
    lines.on_train_begin(args, state, TrainerControl())
    state.log_history.append({"step": 6})
    lines.on_log(args, state, TrainerControl(), logs={"loss": 1.0})
    assert 100 <= seconds_trained(state.log_history) < 110


@contextmanager
def real_terminal(monkeypatch):
    """A terminal, without a size as some have, in place of stderr; gives what it shows.

    No fixture: between one and its test pytest puts its own stderr back.
    """
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    monkeypatch.setenv("TERM", "xterm")
    with open(theirs, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)

        def shown() -> str:
            screen.flush()
            found = b""
            while True:  # a terminal hands over what it has, a piece at a time
                try:
                    found += os.read(ours, 1 << 16)
                except BlockingIOError:
                    return found.decode()

        yield shown
    os.close(ours)


def test_on_a_terminal_a_bar_stands_from_the_first_moment(capsys, monkeypatch):
    with real_terminal(monkeypatch) as terminal:
        watch_the_bar(terminal, capsys, monkeypatch)


def watch_the_bar(terminal, capsys, monkeypatch):
    state, bar = TrainerState(is_world_process_zero=True), Bar()
    assert is_terminal()
    bar.begin(state, "training", 40, 0)
    assert "training:   0%" in terminal() and " 0/40 " in str(bar._main)
    bar.move_to(4)
    bar.tell("loss 2.500")
    bar.print_above("a line")
    assert capsys.readouterr().out == "a line\n"
    assert "4/40" in (shown := terminal()) and "loss 2.500" in shown
    bar.step_aside(state, "validation", 3)
    assert "validation:" in terminal()
    bar.end()
    assert terminal().rstrip("\r").endswith(" " * 40)  # wiped out
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal()


def test_elsewhere_there_is_no_bar(capsys):
    state, bar = TrainerState(is_world_process_zero=True), Bar()
    bar.begin(state, "training", 40, 0)
    bar.move_to(4)
    bar.step_aside(state, "validation", 3)
    bar.end_aside()
    bar.print_above("a line")
    bar.end()
    assert capsys.readouterr() == ("a line\n", "")


def test_other_ranks_show_no_bar(monkeypatch):
    state, bar = TrainerState(is_world_process_zero=False), Bar()
    with real_terminal(monkeypatch) as terminal:
        bar.begin(state, "training", 40, 0)
        bar.step_aside(state, "validation", 3)
        assert terminal() == ""


def test_the_last_step_is_logged_and_counted(tmp_path):
    run = type("Run", (), {"step": None, "bar": None})()
    lines = ProgressLines("texts", 1, run)
    state = TrainerState(max_steps=5, global_step=0, is_world_process_zero=True)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    lines.on_train_begin(args, state, TrainerControl())
    assert (run.step, run.bar) == (0, lines.bar)
    for step in range(1, 6):
        state.global_step = step
        assert lines.on_step_end(args, state, TrainerControl()).should_log == (step == 5)
        assert run.step == step
    args.logging_strategy = "no"
    assert not lines.on_step_end(args, state, TrainerControl()).should_log
