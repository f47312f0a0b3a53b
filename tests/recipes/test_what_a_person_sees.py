"""Progress lines, durations and the loss curve."""

from __future__ import annotations

import os
import pty
import sys
from contextlib import contextmanager

import pytest
from closing_summary import draw_loss_curve, print_summary
from matplotlib import image
from progress_lines import Bar, ProgressLines, duration, is_terminal, seconds_trained
from run_folder import RunFolder
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


def summary(tmp_path, capsys, **entries: object) -> str:
    folder = RunFolder(tmp_path)
    whole = {"recipe": {}, "before": {}, "after": {"eval_loss": 2.0}, "steps": 3, "seconds": 1.0}
    folder.note(**{**whole, "finished": True, **entries})
    print_summary(RunFolder(tmp_path), "eval_loss", again=False)
    return capsys.readouterr().out


def test_long_commands_have_a_line_of_their_own(tmp_path, capsys):
    out = summary(tmp_path, capsys, hints=[["short", "a b"], ["long", "word " * 30 + "end"]])
    assert "  short                  a b\n" in out
    assert "  long:\n    " + "word " * 30 + "end\n" in out


def test_a_sample_keeps_its_blank_lines_and_ends_somewhere(tmp_path, capsys):
    out = summary(tmp_path, capsys, sample="def f():\n    pass\n\n\nclass A:\n" + "x\n" * 99)
    assert "  | def f():\n  |     pass\n  |\n  |\n  | class A:\n" in out
    assert 30 < out.count("  | ") <= 40


@pytest.mark.parametrize("odd", [{"after": {"eval_loss": "much"}}, {"after": {}}])
def test_a_summary_of_an_odd_record_is_shown(odd, tmp_path, capsys):
    assert "Done: 3 steps in 1 s" in summary(tmp_path, capsys, **odd)


LOG = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 1, "loss": 2.8, "learning_rate": 0.1},
    {"step": 2, "loss": 2.5, "learning_rate": 0.0},
    {"step": 2, "eval_loss": 2.6},
]


@pytest.mark.parametrize(
    "log", [LOG, LOG[1:3], LOG[1:2], LOG[:1], []], ids=["whole", "train", "one step", "eval", "no"]
)
def test_curve_can_be_drawn_from_any_log(log, tmp_path):
    draw_loss_curve(log, tmp_path / "curve.png", title="a title")
    pixels = image.imread(tmp_path / "curve.png")
    assert pixels.shape[0] > 500 and pixels.shape[1] > 800
    blue = (pixels[..., 2] > pixels[..., 0] + 0.3).mean()
    assert (blue > 1e-4) == any("loss" in entry for entry in log)
    assert (pixels[..., :3].min(-1) < 0.7).mean() > 1e-3  # never an empty page
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
