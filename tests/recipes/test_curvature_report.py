"""Tables and pictures of the walk, from cells whose numbers are known."""

from __future__ import annotations

import pytest
from curvature_report import draw, markdown, networks

STEPS = (1e-3, 1e-2, 1e-1)


def cell(depth=2, residual=False, steps=5, seed=0, **changed):
    """A walk on which the gradients change by ten and twenty times (1 + step)^depth - 1."""

    def point(step):
        drt = (1 + step) ** depth - 1
        return {
            "relative_step": step,
            "loss_change": -step if step < 0.05 else step,
            "output_change": 3 * drt,
            "drt": drt,
            "spectral_drt": 4 * drt,
            "output_bound": 5 * drt,
            "gradient_change": [10 * drt, 20 * drt],
            "jacobian_change": [2 * drt, 6 * drt],
        }

    key = {"depth": depth, "residual": residual, "steps": steps, "seed": seed}
    points = [point(step) for step in STEPS]
    return {"key": key, "loss": 0.5, "accuracy": 0.9, "points": points, **changed}


CELLS = [
    cell(depth, residual, steps, seed)
    for seed in (0, 1)
    for steps in (5, 0)
    for depth in (16, 2)
    for residual in (True, False)
]


def test_cells_are_grouped_by_network_in_the_order_of_the_tables():
    found = [(each.steps, each.depth, each.kind) for each in networks(CELLS)]
    kinds = [(depth, kind) for depth in (2, 16) for kind in ("plain", "residual")]
    assert found == [(steps, *each) for steps in (0, 5) for each in kinds]
    assert all(len(each.cells) == 2 for each in networks(CELLS))


def test_the_tables_show_the_numbers_of_the_cells():
    changes, descent = markdown([cell(), cell(seed=1)]).split("\n\n")
    row = changes.splitlines()[3]
    assert row == (
        "| 5 | 2, plain | 0.01 | 0.02 | 0.3 (0.2 to 0.4) | 15 (10 to 20) | 4 (2 to 6) | 0.06 | 3 "
        "| 0.08 | 0.1 | -1 % |"
    )
    # (1 + 1)^(1/2) - 1; the loss rises from the third relative step on.
    assert descent.splitlines()[2] == "| 5 | 2, plain | 2 | 0.5 | 90.0 % | 0.1 | 0.41 |"


def test_a_loss_that_never_rises_and_one_that_does_not_move_are_told_apart():
    falling, still = cell(), cell()
    for point in falling["points"]:
        point["loss_change"] = -0.1
    for point in still["points"]:
        point["loss_change"] = 0.0
    assert "| none of these |" in markdown([falling])
    assert "| 0.001 |" in markdown([still]).split("\n\n")[1]


def test_numbers_beyond_float64_and_relative_steps_that_were_not_taken_leave_no_trace():
    huge = cell()
    huge["points"][2].update(loss_change=None, drt=1e300, output_bound=None)
    huge["points"][2]["gradient_change"] = [None, 1e300]
    del huge["points"][0]
    text = markdown([huge])
    assert [line.split(" | ")[2] for line in text.splitlines()[2:4]] == ["0.01", "0.1"]
    assert "None" not in text and "nan" not in text


def test_a_network_without_a_walk_is_named():
    dead = cell(seed=7, points=[], fault="no direction")
    text = markdown([cell(), dead])
    assert text.endswith("Without a walk: 2 layers, plain, 5 steps, seed 7: no direction.")
    assert networks([dead]) == []


@pytest.mark.parametrize("records", [CELLS, [cell(depth=3)], [cell(16, residual=True)]])
def test_the_picture_is_a_png_and_nothing_else_is_left(records, tmp_path):
    path = draw(tmp_path / "picture.png", records, 5)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir()] == ["picture.png"]


def test_a_picture_can_be_drawn_of_numbers_beyond_float64(tmp_path):
    huge = cell()
    huge["points"][2].update(loss_change=None, drt=1e300, output_change=None)
    huge["points"][2]["gradient_change"] = [None, None]
    assert draw(tmp_path / "picture.png", [huge], 5).is_file()
