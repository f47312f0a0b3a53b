"""Progress lines, durations and the loss curve."""

from __future__ import annotations

import pytest
from loss_curve import draw_loss_curve
from matplotlib import image
from progress_lines import ProgressLines, duration, seconds_trained
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


LOG = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 1, "loss": 2.8, "learning_rate": 0.1},
    {"step": 2, "loss": 2.5, "learning_rate": 0.0},
    {"step": 2, "eval_loss": 2.6},
]


@pytest.mark.parametrize("log", [LOG, LOG[1:3], LOG[:1], []], ids=["whole", "train", "eval", "no"])
def test_curve_can_be_drawn_from_any_log(log, tmp_path):
    draw_loss_curve(log, tmp_path / "curve.png", title="a title")
    pixels = image.imread(tmp_path / "curve.png")
    assert pixels.shape[0] > 500 and pixels.shape[1] > 800
    blue = (pixels[..., 2] > pixels[..., 0] + 0.3).mean()
    assert (blue > 1e-4) == any("loss" in entry for entry in log)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
