"""Pieces cover a tensor once, in any layout, and know where their entries stand in it."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_relopt.backends.batch import constant, pieces


def _layouts() -> dict[str, torch.Tensor]:
    counted = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    return {
        "contiguous": counted.clone(),
        "channels_last": counted.to(memory_format=torch.channels_last),
        "transposed": counted.transpose(0, 3).contiguous().transpose(0, 3),
        "every-other": torch.stack([counted, counted], dim=-1)[..., 0],
        "scalar": torch.tensor(0),
        "empty": torch.zeros(0, 4, dtype=torch.int64),
    }


@pytest.mark.parametrize("size", [1, 7, 30, 1000])
@pytest.mark.parametrize("layout", list(_layouts()))
def test_positions_are_row_major_places(layout: str, size: int) -> None:
    tensor = _layouts()[layout]
    cut = list(pieces((tensor, tensor), size))
    # The entries are numbered in row-major order, so each is its own position.
    for piece in cut:
        assert torch.equal(piece.positions().long(), piece.tensors[0].long())
    entries = torch.cat([piece.tensors[0].reshape(-1) for piece in cut])
    assert sorted(entries.tolist()) == list(range(tensor.numel()))


@pytest.mark.parametrize("layout", list(_layouts()))
def test_pieces_are_views(layout: str) -> None:
    tensor = _layouts()[layout]
    for piece in pieces((tensor,), 7):
        piece.tensors[0].add_(1000)
    assert tensor.numel() == 0 or int(tensor.min()) >= 1000


def test_no_piece_is_much_larger_than_asked() -> None:
    wide = torch.zeros(2, 10_000).t()
    assert max(piece.tensors[0].numel() for piece in pieces((wide,), 512)) <= 512


def test_constants_are_made_once_and_stand_ins_are_not_handed_on() -> None:
    asked = ((5, 2**40), torch.int64, torch.device("cpu"))
    with FakeTensorMode():
        assert type(constant(*asked)) is not torch.Tensor
    made = constant(*asked)
    assert type(made) is torch.Tensor and made.tolist() == [5, 2**40]
    assert constant(*asked) is made
    assert constant((5, 2**40), torch.float64, torch.device("cpu")).dtype is torch.float64
