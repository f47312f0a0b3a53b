"""What codes mean, written to be read. codec.py does the same fast, and a law says so."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_relopt.lns.format import LNSFormat, borders_of, levels_of


def encode(weight: Tensor, scale: Tensor, form: LNSFormat) -> Tensor:
    """The code of the nearest level, in log space; zero is a code of its own.

    Below the range it is the smallest level, whence a weight may grow again, and above the largest.

    Args:
        weight: finite, of any float dtype.
        scale: see ``scale_of``.
    """
    size = _size(weight, scale)
    q = 1 + torch.bucketize(size, borders_of(form, weight.device), right=True)
    return _signed(q, weight, form)


def encode_stochastically(weight: Tensor, scale: Tensor, form: LNSFormat, bits: Tensor) -> Tensor:
    """The code of a level beside the weight, so that the mean of many is the weight.

    Args:
        bits: int32 in [0, 65536), see ``noise`` in rules/rounding.py.
    """
    size = _size(weight, scale)
    levels = levels_of(form, weight.device)[1 : form.levels + 1]
    below = (torch.bucketize(size, levels, right=True) - 1).clamp(0, form.levels - 1)
    above = (below + 1).clamp(max=form.levels - 1)
    step = (levels[above] - levels[below]).clamp(min=torch.finfo(torch.float32).tiny)
    share = (size - levels[below]) / step
    q = 1 + torch.where(share * 65536 > bits, above, below)
    return _signed(q, weight, form)


def decode(codes: Tensor, scale: Tensor, form: LNSFormat) -> Tensor:
    """The weights of codes, in float32."""
    q = (codes.to(torch.int64) & form.levels).to(torch.float64)
    size = torch.exp(-form.spacing * (form.levels - q)).to(torch.float32)
    size = torch.where(q > 0, size, 0.0)
    negative = (codes.to(torch.int64) & form.sign_bit) != 0
    return torch.where(negative & (q > 0), -size, size) * scale


def _size(weight: Tensor, scale: Tensor) -> Tensor:
    return weight.to(torch.float32).abs() / scale


def _signed(q: Tensor, weight: Tensor, form: LNSFormat) -> Tensor:
    q = torch.where(weight == 0, 0, q)
    return torch.where(weight < 0, q + form.sign_bit, q).to(form.dtype)
