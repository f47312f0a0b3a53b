"""Pieces cover a part once, in any layout, and know where they stand in the full tensor."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends.part import View, pieces
from tests.batches import view_of


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


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("size", [1, 7, 30, 1000])
@pytest.mark.parametrize("layout", list(_layouts()))
def test_positions_are_row_major_places(layout: str, size: int, by_row: bool) -> None:
    tensor = _layouts()[layout]
    count = len(tensor) if by_row and tensor.dim() and len(tensor) else 1
    view = view_of(5, tuple(tensor.shape), count)
    cut = list(pieces((tensor, tensor), view, size))
    # The entries are numbered in row-major order, so each is its own position.
    for piece in cut:
        assert torch.equal(piece.positions().long(), piece.tensors[0].long())
        if count > 1:
            rows = piece.tensors[0].reshape(piece.count, -1) // tensor[0].numel()
            assert (
                rows == torch.arange(piece.first - 5, piece.first - 5 + piece.count)[:, None]
            ).all()
    entries = torch.cat([piece.tensors[0].reshape(-1) for piece in cut])
    assert sorted(entries.tolist()) == list(range(tensor.numel()))


@pytest.mark.parametrize("layout", list(_layouts()))
def test_pieces_are_views(layout: str) -> None:
    tensor = _layouts()[layout]
    for piece in pieces((tensor,), view_of(0, tuple(tensor.shape)), 7):
        piece.tensors[0].add_(1000)
    assert tensor.numel() == 0 or int(tensor.min()) >= 1000


def test_no_piece_is_much_larger_than_asked() -> None:
    wide = torch.zeros(2, 10_000).t()
    cut = pieces((wide,), view_of(0, (10_000, 2)), 512)
    assert max(piece.tensors[0].numel() for piece in cut) <= 512


def test_blocks_of_columns_are_views_that_know_where_they_stand() -> None:
    tensor = torch.arange(24).view(4, 6)
    view = View(0, 3, (3, 4, 2), 0, (2, 6, 1), split=(1, 3, 2))
    blocks = view.of(tensor)
    assert blocks.data_ptr() == tensor.data_ptr() and not view.in_one_run
    assert torch.equal(blocks[1], tensor[:, 2:4])
    for piece in pieces((blocks,), view, 4):
        assert torch.equal(piece.positions().long(), piece.tensors[0])
    last = View(2, 1, (4, 2), 4, (6, 1), narrow=(1, 4, 2))
    assert torch.equal(last.of(tensor), tensor[:, 4:])
    assert all(
        torch.equal(piece.positions().long(), piece.tensors[0])
        for piece in pieces((last.of(tensor),), last, 3)
    )
