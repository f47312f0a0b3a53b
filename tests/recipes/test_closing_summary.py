"""What a finished run shows: the last lines, whatever its record holds, and the loss curve."""

from __future__ import annotations

import pytest
from closing_summary import ROLE_COLORS, draw_loss_curve, print_summary
from matplotlib import image
from run_folder import RunFolder


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


def test_the_picture_shows_what_each_role_did(tmp_path):
    """Two more panels, with a line of its own for each role; without telemetry there is none."""
    roles = ("embedding", "matrix", "vector")
    log = [
        {
            "step": step,
            "loss": 3.0 - 0.1 * step,
            "learning_rate": 0.1,
            **{f"relative_update/{role}": 0.01 * (place + 1) for place, role in enumerate(roles)},
            **{f"at_bound/{role}": 0.2 * place for place, role in enumerate(roles)},
        }
        for step in range(1, 9)
    ]
    plain = [{n: v for n, v in entry.items() if "/" not in n} for entry in log]
    pixels = []
    for each in (plain, log):
        draw_loss_curve(each, tmp_path / "curve.png", title="a title")
        pixels.append(image.imread(tmp_path / "curve.png")[..., :3])
    assert pixels[1].shape[0] > pixels[0].shape[0] + 200
    for color in ROLE_COLORS[1:3]:
        rgb = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        seen = [(abs(picture - rgb).max(-1) < 0.02).sum() for picture in pixels]
        assert seen[0] < 10 < seen[1], (color, seen)


def test_a_picture_of_updates_that_are_all_zero_can_be_drawn(tmp_path):
    log = [{"step": 1, "loss": 3.0, "relative_update/matrix": 0.0, "at_bound/matrix": 0.0}]
    draw_loss_curve(log, tmp_path / "curve.png", title="a title")
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_the_last_lines_name_what_shows_the_run(tmp_path, capsys):
    out = summary(tmp_path, capsys)
    assert f"hf-relopt report {tmp_path}\n" in out
    assert f"hf-relopt compare {tmp_path} OTHER\n" in out
