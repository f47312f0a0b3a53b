"""The picture of a distance: written whole, or refused before anything is measured."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from matplotlib import image

from hf_relopt import ConfigError, network_distance
from hf_relopt.distance.figure import LANDMARKS, _landmarks, check_place
from tests.distance.nets import gpt2, moved


@pytest.mark.parametrize("size", [0.0, 1e-2])
def test_a_picture_is_drawn(tmp_path, size):
    model = gpt2()
    path = network_distance(model, moved(model, size)).plot(tmp_path / "x.png")
    pixels = image.imread(path)
    assert pixels.shape[0] > 400 and pixels.std() > 0.01
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("name", ["x.SVG", "x.pdf"])
def test_other_formats(tmp_path, name):
    model = gpt2()
    assert network_distance(model, moved(model)).plot(tmp_path / name).stat().st_size > 1000


def test_a_place_where_no_picture_can_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"x.doc has no suffix of a picture; use one of .*png"):
        check_place(tmp_path / "x.doc")
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        check_place(tmp_path / "nowhere" / "x.png")


def test_nothing_to_draw_is_refused(tmp_path):
    found = network_distance({"z": torch.zeros(2)}, {"z": torch.zeros(2)})
    with pytest.raises(ConfigError, match="no layer to draw"):
        found.plot(tmp_path / "x.png")


def test_landmarks_are_few_and_apart():
    names = [f"model.layers.{n}.{part}" for n in range(80) for part in "abcdefghi"]
    places, words = _landmarks(["embed.weight", *names, "lm_head.weight"])
    assert len(places) <= LANDMARKS + 1 and words[0] == "embed"
    assert min(b - a for a, b in pairwise(places)) >= len(names) / LANDMARKS
