"""Batches of texts alike in length: every place once, little padding, no order by length."""

from __future__ import annotations

import torch


def test_every_place_comes_once_among_others_of_its_length(load) -> None:
    script = load("length_batches")
    lengths = torch.randint(1, 200, (1003,), generator=torch.Generator().manual_seed(1))
    order = torch.randperm(1003, generator=torch.Generator().manual_seed(2))
    made = list(script.alike_in_length(order, lengths, 8, torch.Generator().manual_seed(3)))
    assert torch.cat(made).sort().values.equal(torch.arange(1003))
    assert sorted(len(part) for part in made) == [3] + [8] * 125
    padded = sum(int(lengths[part].max()) * len(part) for part in made)
    assert padded < 1.06 * int(lengths.sum())
    longest = [int(lengths[part].max()) for part in made]
    assert longest[:25] != sorted(longest[:25])
    again = script.alike_in_length(order, lengths, 8, torch.Generator().manual_seed(3))
    assert [part.tolist() for part in again] == [part.tolist() for part in made]
