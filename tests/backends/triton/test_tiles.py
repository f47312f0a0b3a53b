"""Tiles cover each entry once, and addresses are sent when they change and not otherwise."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from hf_relopt.backends.part import View
from hf_relopt.backends.triton import tiles as module
from hf_relopt.backends.triton.tiles import TILE, tiles_of
from tests.batches import view_of


def _tiles(views: list[View], *columns: list[torch.Tensor], positions: bool = False):  # type: ignore[no-untyped-def]
    return tiles_of(views, columns, positions=positions)


def test_what_follows_each_other_needs_no_strides() -> None:
    shapes = [(3, 4), (7,), (), (0,), (2, 5, 6)]
    views = [view_of(place, shape) for place, shape in enumerate(shapes)]
    tiles = _tiles(views, *[[torch.ones(shape) for shape in shapes] for _ in "wg"])
    assert not tiles.strided and not tiles.wide
    assert (tiles.rows, tiles.columns, tiles.count, tiles.slices) == (1, 64, 4, 5)
    assert tiles.totals.tolist() == [[0, 1], [1, 1], [2, 1], [3, 0], [3, 1]]


def test_long_slices_are_cut_and_short_ones_share_a_tile() -> None:
    tiles = _tiles([view_of(0, (TILE + 1,))], [torch.ones(TILE + 1)])
    assert tiles.programs.tolist() == [0, 0] and tiles.most == 2
    assert tiles.facts[0, 6:8].tolist() == [0, 2]
    tiles = _tiles(
        [view_of(0, (9, 5), 9), view_of(9, (3, 8), 3)], [torch.ones(9, 5), torch.ones(3, 8)]
    )
    assert (tiles.rows, tiles.columns) == (16, 8)
    assert tiles.programs.tolist() == [0, 1] and tiles.facts[:, 6:8].tolist() == [[0, 1], [1, 1]]
    assert tiles.totals[:, 0].tolist() == [*range(9), *range(16, 19)]


def test_blocks_of_columns_are_walked_by_strides() -> None:
    fused = torch.ones(32, 96)
    view = View(0, 3, (3, 32, 32), 0, (32, 96, 1), split=(1, 3, 32))
    tiles = _tiles([view], [view.of(fused)])
    assert tiles.strided and tiles.even == (True,)
    assert tiles.facts[0, :4].tolist() == [3, 32 * 32, 32, 32]


@pytest.mark.parametrize(("stride", "wide"), [(2**20, False), (2**28, True)])
def test_offsets_have_64_bits_where_a_slice_reaches_beyond_32(stride: int, wide: bool) -> None:
    """A column of a large matrix has few entries, far from each other."""
    view = View(0, 1, (16, 4), 0, (stride, 1))
    made = module._tiles([view], (((stride, 1),),), torch.device("cpu"), positions=False)
    assert made is not None and made.strided and made.wide is wide


def test_a_dense_tensor_in_another_order_is_flat_unless_positions_are_asked_for() -> None:
    images = torch.ones(4, 3, 2, 2).to(memory_format=torch.channels_last)
    assert not _tiles([view_of(0, (4, 3, 2, 2))], [images], [images.clone()]).strided
    assert _tiles([view_of(0, (4, 3, 2, 2))], [images], positions=True).strided
    assert _tiles([view_of(0, (4, 3, 2, 2))], [images], [torch.ones(4, 3, 2, 2)]).strided


def test_too_many_strides_are_not_walked() -> None:
    shape = (2, 3, 4, 5)
    every_other = torch.ones(4, 6, 8, 10)[::2, ::2, ::2, ::2]
    assert every_other.shape == shape
    assert _tiles([view_of(0, shape)], [every_other]) is None


@pytest.mark.parametrize(("length", "even"), [(32, True), (24, False)])
def test_a_part_is_even_if_all_is(length: int, even: bool) -> None:
    whole = torch.ones(1 + length)
    tensor = torch.ones(length)
    tiles = _tiles([view_of(0, (length,))], [tensor])
    assert tiles.addresses([[tensor]]).tolist() == [[tensor.data_ptr(), int(even)]]
    odd = whole[1:]  # four bytes behind a multiple of sixteen
    assert tiles.addresses([[odd]]).tolist() == [[odd.data_ptr(), 0]]


def test_addresses_are_sent_when_one_changes() -> None:
    one, other = torch.ones(8), torch.ones(8)
    tiles = _tiles([view_of(0, (8,))], [one])
    first = tiles.addresses([[one]])
    assert tiles.addresses([[one]]) is first
    assert tiles.addresses([[other]]).tolist() != first.tolist()
    assert tiles.addresses([[one]]).tolist() == first.tolist()


def test_addresses_of_a_few_places_are_kept() -> None:
    """Sums and updates ask in different orders, and gradients may alternate."""
    places = [torch.ones(8) for _ in range(3)]
    view = view_of(0, (8,))
    sent = [_tiles([view], [place]).addresses([[place]]) for place in places]
    assert all(
        _tiles([view], [place]).addresses([[place]]) is own
        for place, own in zip(places, sent, strict=True)
    )


def test_tiles_die_with_their_views() -> None:
    view, other = view_of(0, (8,)), view_of(1, (8,))
    tiles = weakref.ref(_tiles([view, other], [torch.ones(8), torch.ones(8)]))
    assert tiles() is not None
    del view
    gc.collect()
    assert tiles() is None and other


def test_only_so_many_are_kept() -> None:
    view = view_of(0, (2, 2))
    for length in range(2, 40):
        _tiles([view], [torch.ones(2, length)[:, :2]])
    assert len(module._known[view]) == module._KEPT


class _Wrapped(torch.Tensor):
    """A tensor without a storage of its own, as quantized weights are."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


def test_what_does_not_lie_at_its_address_has_no_tiles() -> None:
    """Subclasses, and gradients that are negated when they are read."""
    assert _tiles([view_of(0, (4,))], [_Wrapped(torch.ones(4))]) is None
    negated = torch.ones(4, dtype=torch.complex64).conj().imag
    assert negated.is_neg() and _tiles([view_of(0, (4,))], [negated]) is None
