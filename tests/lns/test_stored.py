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
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2)])
def test_rows_by_the_note_are_those_of_the_weight(form, shape):
    weight = LNSTensor.from_float(torch.randn(shape), form)
    note = note_of({"layer.weight": weight, "layer.bias": torch.zeros(3)}, form)
    codes = codes_noted(note, ["layer.weight"])
    assert codes is not None and codes.form == form
    assert codes.shapes == {"layer.weight": torch.Size(shape)}
    flat = weight.packed.view(-1)
    for rows in (slice(0, shape[0]), slice(1, 3)):
        read = codes.read("layer.weight", rows, flat.__getitem__, weight.scale.__getitem__)
        assert torch.equal(read, weight.dequantize()[rows])
    each = packed_size(weight[0].numel(), form.bits)
    with pytest.raises(FormatError, match=rf"is {2 * each} bytes"):
        codes.read(
            "layer.weight", slice(3, 5), flat[: 4 * each].__getitem__, weight.scale.__getitem__
        )


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {NOTE: "no json"},
        {NOTE: "[]"},
        {NOTE: json.dumps({"format": {"name": "lns9", "bits": 9, "spacing": 0.1}, "shapes": {}})},
        *[
            {NOTE: note_of({}, FORMATS["lns8"])[NOTE].replace("{}", json.dumps(shapes))}
            for shapes in ({}, {"w": [3]}, {"w": [3, -1]}, {"w": "3x3"}, {"w": None})
        ],
    ],
)
def test_a_note_that_says_nothing_of_a_weight_is_none(metadata):
    assert codes_noted(metadata, ["w"]) is None
