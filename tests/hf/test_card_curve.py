"""The picture of a loss: drawn from any log that has a number in it."""

from __future__ import annotations

import matplotlib.image
import numpy as np

from hf_relopt.hf.card_curve import draw_curve


def colors(path):
    """Colours of the lines in a picture."""
    picture = (matplotlib.image.imread(path)[:, :, :3] * 255).round().astype(int)
    return {tuple(map(int, each)) for each in np.unique(picture.reshape(-1, 3), axis=0)}


TRAINING, VALIDATION = (0x2A, 0x6F, 0xBB), (0xD1, 0x49, 0x5B)


def test_both_losses_are_drawn(tmp_path):
    log = [{"step": n, "loss": 1 / (n + 1)} for n in range(40)]
    assert draw_curve(log, tmp_path / "a.png", "a run")
    assert TRAINING in colors(tmp_path / "a.png")
    assert VALIDATION not in colors(tmp_path / "a.png")
    assert draw_curve([*log, {"step": 4, "eval_loss": 1.0}], tmp_path / "a.png", "a run")
    assert {TRAINING, VALIDATION} <= colors(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_values_that_are_not_finite_leave_gaps_and_nothing_is_no_picture(tmp_path):
    odd = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": None}]
    assert not draw_curve(odd, tmp_path / "a.png", "a run")
    assert not draw_curve([], tmp_path / "a.png", "a run")
    assert not list(tmp_path.iterdir())
    assert draw_curve([*odd, {"step": 3, "loss": 1.0}], tmp_path / "a.png", "a run")


def test_the_figures_of_the_script_are_left_alone(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    draw_curve([{"step": 1, "loss": 1.0}], tmp_path / "a.png", "a run")
    assert pyplot.get_fignums() == before
