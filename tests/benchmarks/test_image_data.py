"""Pictures for the experiments: the split, batches, scaling, and measures by hand."""

from __future__ import annotations

import pytest
import torch


def test_digits_are_split_the_same_way_each_time(load) -> None:
    data = load("image_data")
    one, other = (data.read_pictures("digits", 8, 1) for _ in range(2))
    assert (one.train.count, one.valid.count, one.classes) == (1437, 360, 10)
    assert one.train.shape == (1, 8, 8)
    places = torch.arange(5)
    for part in ("train", "valid"):
        first, second = getattr(one, part).read(places), getattr(other, part).read(places)
        assert all(map(torch.equal, first, second))


def test_pictures_are_scaled_and_given_colors(load) -> None:
    pixels, labels = next(load("image_data").read_pictures("digits", 32, 3).valid.in_order())
    assert pixels.shape == (360, 3, 32, 32) and labels.dtype is torch.int64
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_batches_use_each_picture_once_in_an_epoch(load) -> None:
    data = load("image_data")
    part = data.Pictures(torch.Size([1]), 10, lambda places: (places, places))
    batches = [pixels for pixels, _ in part.batches(3, 7, seed=1)]
    assert [len(batch) for batch in batches] == [3] * 7
    for epoch in (batches[:3], batches[3:6]):
        assert len(torch.cat(epoch).unique()) == 9
    again = [pixels for pixels, _ in part.batches(3, 7, seed=1)]
    assert all(map(torch.equal, batches, again))
    assert [len(batch) for batch, _ in part.batches(99, 2, seed=0)] == [10, 10]


def test_measures_are_those_by_hand(load) -> None:
    data = load("image_data")
    labels = torch.tensor([0, 1, 1, 0])
    part = data.Pictures(torch.Size([1]), 4, lambda places: (places, labels[places]))
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    found = data.measured(lambda places: logits[places], part)
    right, wrong = (-torch.log_softmax(torch.tensor([2.0, 0.0]), 0)).tolist()
    assert found["accuracy"] == 75.0
    assert found["loss"] == pytest.approx((3 * right + wrong) / 4, abs=1e-4)
