"""Whole norms: the one place that turns local sums into numbers about whole logical tensors.

Sharded tensors are refused here until their sums are reduced over the mesh; this is the only file
that knows DTensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_relopt.errors import UnsupportedSetup

# What a step has to sum: "grad": |g|;  "norms": |g| and |W|;  "cosine": these and <W,g>/(|W||g|).
Sums = Literal["grad", "norms", "cosine"]

# (params, grads, what) -> [T, 1 to 3], in the order above, of local tensors
LocalSums = Callable[[Sequence[Tensor], Sequence[Tensor], Sums], Tensor]


@dataclass(frozen=True)
class WholeNorms:
    """Norms of T whole tensors, each of shape [T], on their device (float64 where it has that)."""

    grad: Tensor
    param: Tensor | None
    cosine: Tensor | None


def whole_norms(
    params: Sequence[Tensor], grads: Sequence[Tensor], what: Sums, local_sums: LocalSums
) -> WholeNorms:
    """|g| and, if asked, |W| and the cosine between them, without a host synchronisation."""
    columns = local_sums(params, grads, what).unbind(dim=1)
    return WholeNorms(*columns, *[None] * (3 - len(columns)))


def refuse_inexact(param: Tensor, built_shape: torch.Size, name: str) -> None:
    """Refuse a ``param`` that is no longer the whole tensor the optimizer was built with.

    Raises:
        UnsupportedSetup: for a DTensor, a tensor that FSDP1 has flattened, or a changed shape
            (what ZeRO and FSDP1 leave in place of the weights).
    """
    if is_sharded(param):
        raise UnsupportedSetup(
            f"{name} is a DTensor (FSDP2 or tensor parallelism). Norms of whole tensors are not "
            "yet summed over shards here, so the step would be wrong. Use DDP or a single device."
        )
    if getattr(param, "_fsdp_flattened", False):
        raise UnsupportedSetup(
            f"{name} is part of FSDP1's flat parameter: the norm of the whole tensor is lost with "
            "that. Use DDP, or a single device."
        )
    if param.shape != built_shape:
        raise UnsupportedSetup(
            f"{name} has shape {tuple(param.shape)} where the optimizer was built with "
            f"{tuple(built_shape)}: FSDP1 and DeepSpeed ZeRO flatten weights, and their per-tensor "
            "norms are lost with that. Use DDP, or a single device."
        )


def is_sharded(param: Tensor) -> bool:
    """True for a DTensor."""
    # DTensor's module is heavy; if nobody has imported it, no tensor can be one.
    if not torch.distributed.is_available():
        return False
    import sys

    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(param, module.DTensor)
