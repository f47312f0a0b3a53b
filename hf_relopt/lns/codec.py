"""Weights to codes and back, fast: the level is guessed by a logarithm, and then put right.

A search among thousands of levels takes 15 to 40 times as long, and a logarithm in float32 alone is
off by one where a weight lies at a border.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_relopt.lns.format import LNSFormat, borders_of, levels_in_graph, levels_of
from hf_relopt.lns.scale import require_finite


def encode(weight: Tensor, scale: Tensor, form: LNSFormat) -> Tensor:
    """Like encode in definition.py: the nearest codes, int16 (int32 for 16 bits).

    Raises:
        ConfigError: an entry is NaN or infinite.
    """
    return _encode(weight, scale, form, None)


def encode_stochastically(weight: Tensor, scale: Tensor, form: LNSFormat, bits: Tensor) -> Tensor:
    """Like encode_stochastically in definition.py.

    Raises:
        ConfigError: an entry is NaN or infinite.
    """
    return _encode(weight, scale, form, bits)


def decode(
    codes: Tensor, scale: Tensor, form: LNSFormat, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The weights of codes, as decode in definition.py, in a float dtype.

    Args:
        codes: of any shape and integer dtype, as ``encode`` makes them.
        scale: see ``scale_of``.
    """
    # A compiler has tensors of its own, among which one from outside would be a stranger.
    is_traced = type(codes) is not Tensor
    levels = levels_in_graph(form, codes.device) if is_traced else levels_of(form, codes.device)
    found = levels.index_select(0, codes.reshape(-1).to(torch.int32)).view(codes.shape)
    return found.mul_(scale).to(dtype)


def _encode(weight: Tensor, scale: Tensor, form: LNSFormat, bits: Tensor | None) -> Tensor:
    size = weight.detach().to(torch.float32, copy=True).abs_()
    require_finite(size, weight.shape)
    size.div_(scale)
    if bits is None:
        # Borders count: with n of them below it, a weight's level is n + 1.
        q = 1 + _count(size, borders_of(form, weight.device), form, 0.5)
    else:
        q = _beside(size, form, bits)
    # By the weight: what is so small that the quotient is none is at the smallest level.
    q.masked_fill_(weight == 0, 0)
    return q.add_((weight < 0).to(q.dtype), alpha=form.sign_bit).to(form.dtype)


def _beside(size: Tensor, form: LNSFormat, bits: Tensor) -> Tensor:
    levels = levels_of(form, size.device)[1 : form.levels + 1]
    below = (_count(size, levels, form, 0.0) - 1).clamp_(0, form.levels - 1)
    above = (below + 1).clamp_(max=form.levels - 1)
    at, step = _pick(levels, below), _pick(levels, above)
    step.sub_(at).clamp_(min=torch.finfo(torch.float32).tiny)
    share = (size - at).div_(step)
    return 1 + torch.where(share.mul_(65536) > bits, above, below)


def _count(size: Tensor, thresholds: Tensor, form: LNSFormat, shift: float) -> Tensor:
    """How many of the thresholds, which rise by one factor, are not above each size: int32."""
    most = len(thresholds)
    guess = torch.log(size).div_(form.spacing).add_(form.levels - shift).floor_()
    count = guess.nan_to_num_(0.0, most, 0.0).clamp_(0, most).to(torch.int32)
    # A threshold too many, or one too few: the guess is at most one off.
    too_many = (count > 0) & (_pick(thresholds, (count - 1).clamp_(min=0)) > size)
    too_few = (count < most) & (_pick(thresholds, count.clamp(max=most - 1)) <= size)
    return count.sub_(too_many.to(torch.int32)).add_(too_few.to(torch.int32))


def _pick(table: Tensor, places: Tensor) -> Tensor:
    return table.index_select(0, places.reshape(-1)).view(places.shape)
