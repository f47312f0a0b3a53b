"""Codes in files: what does not fit them, and numbers of some rows by the note of their shapes."""

from __future__ import annotations

import json

import pytest
import torch

from hf_relopt import FormatError
from hf_relopt.lns.format import FORMATS, LNSFormat
from hf_relopt.lns.packing import packed_size
from hf_relopt.lns.stored import NOTE, codes_noted, note_of, restored
from hf_relopt.lns.tensor import LNSTensor


def test_what_does_not_fit_is_refused():
    form, shape = FORMATS["lns12"], torch.Size((4, 6))
    weight = LNSTensor.from_float(torch.randn(shape), form)
    packed, scales = weight.packed.view(-1), weight.scale
    fit = {"form": form, "shape": shape, "dtype": torch.float32, "name": "layer.weight"}
    assert torch.equal(restored(packed, scales, **fit), weight)
    for bad, message in (
        ((packed[:-1], scales), "layer.weight has 35 entries .* is 36 bytes"),
        ((packed.float(), scales), "torch.float32"),
        ((packed, scales[:-1]), "scales of layer.weight .* shape .3,. in place of"),
        ((packed, scales.half()), "torch.float16"),
        ((packed, -scales), "not all positive"),
        ((packed, scales * torch.nan), "not all positive"),
    ):
        with pytest.raises(FormatError, match=message):
            restored(*bad, **fit)


@pytest.mark.parametrize(
    "form", [*FORMATS.values(), LNSFormat("own", 10, 0.005, "tensor")], ids=lambda form: form.name
)
@pytest.mark.parametrize(
    ("shape", "pieces"),
    [
        ((5, 7), [(0, 5, 0, 7), (1, 3, 0, 7), (1, 3, 2, 5), (4, 5, 3, 7), (2, 3, 5, 6)]),
        (
            (4, 3, 5),
            [(0, 4, 0, 3, 0, 5), (2, 3, 1, 2, 2, 4), (3, 4, 1, 3, 0, 5), (1, 3, 0, 2, 1, 4)],
        ),
    ],
)
def test_pieces_by_the_note_are_those_of_the_weight(form, shape, pieces):
    weight = LNSTensor.from_float(torch.randn(shape), form)
    codes = codes_noted(note_of({"w": weight, "bias": torch.zeros(3)}, form))
    assert codes is not None and codes.form == form
    assert codes.shapes == {"w": torch.Size(shape)}
    flat = weight.packed.view(-1)
    for ends in pieces:
        where = tuple(map(slice, ends[::2], ends[1::2]))
        read = codes.read("w", where, flat.__getitem__, weight.scale.__getitem__)
        assert torch.equal(read, weight.dequantize()[where])
    cut = flat[: 2 * packed_size(weight[0].numel(), form.bits)]
    where = tuple(slice(0, size) for size in shape)
    with pytest.raises(FormatError, match="is cut off"):
        codes.read("w", where, cut.__getitem__, weight.scale.__getitem__)


def test_of_one_row_no_more_is_read_than_a_piece_needs():
    form = FORMATS["lns12"]
    weight = LNSTensor.from_float(torch.randn(3, 50, 100), form)
    codes = codes_noted(note_of({"w": weight}, form))
    asked = []

    def packed(where):
        asked.append(where.stop - where.start)
        return weight.packed.view(-1)[where]

    where = slice(1, 2), slice(7, 9), slice(0, 100)
    read = codes.read("w", where, packed, weight.scale.__getitem__)
    assert torch.equal(read, weight.dequantize()[where])
    assert asked == [300]


@pytest.mark.parametrize(
    "note",
    [
        "no json",
        "[]",
        json.dumps({"format": {"name": "lns9", "bits": 9, "spacing": 0.1}, "shapes": {}}),
        *[
            note_of({}, FORMATS["lns8"])[NOTE].replace("{}", json.dumps(shapes))
            for shapes in ({"w": [3]}, {"w": [3, -1]}, {"w": "3x3"}, {"w": None})
        ],
    ],
)
def test_a_note_that_cannot_be_read_is_refused(note):
    assert codes_noted({}) is None
    with pytest.raises(FormatError, match="damaged, or of a later hf_relopt"):
        codes_noted({NOTE: note})
