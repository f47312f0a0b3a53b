"""Codes in bytes: as a stream of bits, of any length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt import FormatError
from hf_relopt.lns.format import BITS
from hf_relopt.lns.packing import group_of, pack, packed_size, unpack


def as_defined(codes: list[int], bits: int) -> list[int]:
    """The bytes of one long number, whose lowest bits are the first code."""
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    return list(number.to_bytes(packed_size(len(codes), bits), "little"))


@pytest.mark.parametrize(("bits", "group"), [(8, (1, 1)), (10, (4, 5)), (12, (2, 3)), (16, (1, 2))])
def test_groups_are_full(bits: int, group: tuple[int, int]) -> None:
    assert group_of(bits) == group
    assert [packed_size(n * group[0], bits) for n in (0, 1, 7)] == [n * group[1] for n in (0, 1, 7)]
    assert packed_size(1, bits) == group[1]


@given(st.data())
def test_any_codes_are_one_stream_of_bits_and_come_back(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from(BITS))
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=33))
    dtype = torch.int16 if bits < 16 else torch.int32
    tensor = torch.tensor(codes, dtype=dtype)
    packed = pack(tensor, bits)
    assert packed.dtype is torch.uint8 and packed.tolist() == as_defined(codes, bits)
    again = unpack(packed, bits, len(codes))
    assert again.dtype is dtype and again.tolist() == codes


@pytest.mark.parametrize("bits", BITS)
def test_every_code_beside_every_kind_of_neighbour(bits: int) -> None:
    every = torch.arange(2**bits, dtype=torch.int32)
    for other in (torch.zeros_like(every), torch.full_like(every, 2**bits - 1), every.flip(0)):
        codes = torch.stack([every, other], dim=1).view(2, -1, 2)
        dtype = torch.int16 if bits < 16 else torch.int32
        found = unpack(pack(codes.to(dtype), bits), bits, codes.numel())
        assert torch.equal(found.to(torch.int32), codes.reshape(-1))


@pytest.mark.parametrize("bits", BITS)
def test_bytes_that_do_not_fit_are_refused(bits: int) -> None:
    packed = pack(torch.ones(9, dtype=torch.int32), bits)
    size = packed_size(9, bits)
    for some in (packed[:-1], torch.cat([packed, packed[:1]]), packed[:0]):
        with pytest.raises(FormatError, match=rf"9 codes of {bits} bits are {size} bytes"):
            unpack(some, bits, 9)
    with pytest.raises(FormatError, match=r"in torch.int16"):
        unpack(packed.to(torch.int16), bits, 9)


def test_bytes_are_a_copy() -> None:
    codes = torch.arange(4, dtype=torch.uint8)
    pack(codes, 8).fill_(9)
    assert codes.tolist() == [0, 1, 2, 3]
