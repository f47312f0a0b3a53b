"""The one all-reduce: what ranks have summed of their shards becomes the sum of the full tensors.

Everything of a step is summed together: one all-reduce for each process group over which something
is sharded (one for FSDP2, one for HSDP, two for FSDP with tensor parallelism), whatever the number
of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_relopt.sharding.layout import Layout


def full_norms(rows: Sequence[Tensor], layouts: Sequence[Layout | None]) -> list[Tensor]:
    """Turn norms and cosines of local shards into those of full tensors.

    Args:
        rows: [n, 1 to 3] each: |U|, |W| and their cosine, of n slices of weights that lie alike.
        layouts: how those of each member of ``rows`` lie; None for slices that are on one rank.
    """
    full = list(rows)
    sharded = [(place, layout) for place, layout in enumerate(layouts) if layout and layout.groups]
    if sharded:
        squares = [_squares(rows[place]) for place, _ in sharded]
        sums = all_reduced(squares, [layout for _, layout in sharded])
        for (place, _), each in zip(sharded, sums, strict=True):
            full[place] = _norms(each)[:, : rows[place].size(1)]
    return full


def all_reduced(sums: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
    """Add what every rank has summed; one all-reduce for each process group.

    Every rank passes the sums of the same sharded weights in the same order. Which ranks have
    gradients must not matter.

    Returns: new tensors of the same shapes, or the given ones where nothing is sharded.
    """
    result = list(sums)
    members: dict[tuple[Any, torch.device], list[int]] = {}
    for place, layout in enumerate(layouts):
        for group in layout.groups:
            members.setdefault((group, sums[place].device), []).append(place)
    for (group, device), places in members.items():
        flat = torch.cat([result[place].reshape(-1) for place in places])
        reduced = layouts[places[0]].reachable(flat)
        torch.distributed.all_reduce(reduced, group=group)
        parts = reduced.to(device).split([result[place].numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            result[place] = part.view(result[place].shape)
    return result


def _squares(rows: Tensor) -> Tensor:
    """[n, 3] of [n, 1 to 3]: |U|^2, |W|^2 and <W,U>. float64 has room for them.

    What was not summed is zero: ranks may differ in what they ask for, since one of them may not
    know yet that its anchors are made.
    """
    grad, param, cosine = torch.nn.functional.pad(rows, (0, 3 - rows.size(1))).unbind(dim=1)
    return torch.stack([grad * grad, param * param, cosine * grad * param], dim=1)


def _norms(sums: Tensor) -> Tensor:
    grad, param = sums[:, :2].sqrt().unbind(dim=1)
    product = grad * param
    cosine = torch.where(product > 0, sums[:, 2] / product, 0.0)
    return torch.stack([grad, param, cosine], dim=1)
