"""What weights lose in codes, against the definition in float64."""

from __future__ import annotations

import math

import pytest
import torch

from hf_relopt.hf import coding_error as module
from hf_relopt.hf.coding_error import coding_error, stored_bytes, together
from hf_relopt.lns.format import FORMATS, LNSFormat
from hf_relopt.lns.tensor import LNSTensor

PER_TENSOR = LNSFormat("own", 8, 0.05, "tensor")


def weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[6, 4, 8] with zeros, tiny entries, and a row whose entries are all as large."""
    found = torch.randn(6, 4, 8)
    found[0, 0], found[1, 1], found[2] = 0.0, 1e-7, 1.5
    # More than three times the root mean square of its row, so that it is at the top.
    found[4, 3, 1] = 40.0
    return found.to(dtype)


@pytest.mark.parametrize("form", [*FORMATS.values(), PER_TENSOR], ids=lambda form: form.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [2**22, 64])
def test_numbers_are_those_of_the_definition(form, dtype, piece, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", piece)
    before = weight(dtype)
    after = LNSTensor.from_float(before, form)
    found = coding_error("w", before, after)
    wide = before.double()
    lost = (after.dequantize().double() - wide).norm()
    assert found.relative == pytest.approx(float(lost / wide.norm()), rel=1e-12)
    assert (found.shape, found.entries) == ((6, 4, 8), 192)
    # 8, 10, 12 and 16 bits for each of a row's 32 entries, and float32 scales.
    scales = 1 if form is PER_TENSOR else 6
    assert found.stored == 6 * 4 * form.bits + 4 * scales
    assert found.bits == pytest.approx(form.bits + 32 * scales / 192)
    scale = after.scale.double().view(-1, 1, 1)
    least = scale * math.exp(-form.spacing * (form.levels - 1))
    assert found.below == int(((wide.abs() < least) & (wide != 0)).sum()) >= 2
    # What is nearer to the largest level than to the one below it, in log space.
    top = int((wide.abs() > scale * math.exp(-form.spacing / 2)).sum())
    assert found.at_top == top >= 1
    assert found.to_dict()["at_top"] == top / 192


def test_together_they_are_one_weight():
    parts = [torch.randn(3, 8), 10 * torch.randn(5, 8)]
    errors = [coding_error("w", part, LNSTensor.from_float(part, "lns8")) for part in parts]
    both = torch.cat(parts)
    one, all_ = coding_error("w", both, LNSTensor.from_float(both, "lns8")), together(errors)
    assert all_.relative == pytest.approx(one.relative) and all_.bits == one.bits
    assert (all_.entries, all_.stored) == (one.entries, one.stored)
    assert (all_.below, all_.at_top) == (one.below, one.at_top)


def test_bytes_are_those_of_codes_scales_and_numbers():
    form = FORMATS["lns12"]
    codes = LNSTensor.from_float(torch.randn(4, 6), form)
    assert stored_bytes([codes, torch.zeros(5, dtype=torch.bfloat16)]) == 4 * 9 + 4 * 4 + 10
