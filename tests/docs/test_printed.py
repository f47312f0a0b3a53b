"""The comparison of what a page says with what is printed lets through rounding and no more."""

from __future__ import annotations

import pytest

from tests.docs.printed import difference


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("loss 0.50\n", "loss 0.51\n"),
        ("nearest 1.0\nstochastic 0.9950149655342102\n", "nearest 1.0\nstochastic 0.99502\n"),
        ("1.0e-05 left", "1.2e-05 left"),
        (
            "role      lr  parameters\nmatrix  0.02       1,616",
            "role lr parameters\nmatrix 0.02 1,616",
        ),
        ("...\naccuracy 0.97\n", "{'train_runtime': '25.43'}\nworking\naccuracy 0.96\n"),
        ("first\n...\n", "first\nmore\n"),
        ("first\n...\nlast\n", "first\nlast\n"),
    ],
)
def test_rounding_and_lines_left_out_are_let_through(said, printed):
    assert difference(said, printed) is None


@pytest.mark.parametrize(
    ("said", "printed", "wrong"),
    [
        ("loss 0.50\n", "loss 0.53\n", "'loss 0.53' was printed"),
        ("28 tensors", "29 tensors", "'29 tensors' was printed"),
        ("1,616 weights", "1,617 weights", "'1,617 weights' was printed"),
        ("1e-05 left", "1e-04 left", "'1e-04 left' was printed"),
        ("1.0e-05 left", "1.3e-05 left", "'1.3e-05 left' was printed"),
        ("loss 0.5", "lost 0.5", "'lost 0.5' was printed"),
        ("one\ntwo\n", "one\n", "'nothing' was printed"),
        ("one\n", "one\ntwo\n", "'two' was printed, too"),
        ("...\nlast\n", "first\n", "'nothing' was printed"),
        ("...\nlast\n", "last\nmore\n", "'more' was printed, too"),
        ("lr 0.02 0.02", "lr 0.02", "'lr 0.02' was printed"),
        ("gpt2 0.50", "gpt3 0.50", "'gpt3 0.50' was printed"),
    ],
)
def test_all_else_is_a_difference(said, printed, wrong):
    assert (difference(said, printed) or "").endswith(wrong)
