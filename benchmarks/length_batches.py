"""Random batches of texts that are alike in length, so that padding stays small."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Batches of one length are cut from this many batches at a time.
SORTED_TOGETHER = 25


def alike_in_length(
    order: Tensor, lengths: Tensor, size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Cut places into batches.

    Args:
        order: places in random order, [places].
        lengths: tokens of the text at each place.
        size: places in a batch; the last of them all may have fewer.
        generator: shuffles the batches, so that short ones do not come first.
    """
    for part in order.split(SORTED_TOGETHER * size):
        together = part[lengths[part].argsort(stable=True)].split(size)
        for number in torch.randperm(len(together), generator=generator).tolist():
            yield together[number]
