"""Layouts: what of each weight lies on this rank. The only file that knows DTensor."""

from __future__ import annotations

import math
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_relopt.errors import UnsupportedSetup


@dataclass(frozen=True)
class Layout:
    """How a weight lies over the ranks, worked out once: asking a DTensor costs more than a sum.

    Attributes:
        shape: of the full tensor.
        offset: where this rank's shard begins in it, per dimension; zeros if the shard is all.
        local_shape: of the shard.
        sharded: is it a DTensor, whatever its placements?
        groups: the process groups over which it is sharded, in the order of its mesh.
        dims: the dimension that each of them cuts.
        rows_are_whole: has a rank that holds a part of a row all of it?
        shards: into how many it is cut.
        reach: the kind of device on which the groups work: offloaded shards lie away from it.
    """

    shape: torch.Size
    local_shape: torch.Size
    offset: tuple[int, ...]
    sharded: bool = False
    groups: tuple[Any, ...] = ()
    dims: tuple[int, ...] = ()
    rows_are_whole: bool = True
    shards: int = 1
    reach: str | None = None

    @property
    def is_whole(self) -> bool:
        """True if this rank holds all of the weight."""
        return self.local_shape == self.shape

    def along(self, dims: Container[int]) -> Layout:
        """The same for sums along ``dims``: with the process groups that cut one of these alone."""
        cuts = [cut for cut in zip(self.groups, self.dims, strict=True) if cut[1] in dims]
        groups, own = zip(*cuts, strict=True) if cuts else ((), ())
        return replace(self, groups=groups, dims=own)

    def reachable(self, tensor: Tensor) -> Tensor:
        """``tensor`` where the process groups work."""
        here = self.reach is None or tensor.device.type == self.reach
        return tensor if here else tensor.to(self.reach)


def layout_of(param: Tensor) -> Layout:
    """The layout of ``param``, a plain tensor or a DTensor."""
    zeros = (0,) * param.dim()
    if not is_sharded(param):
        return Layout(param.shape, param.shape, zeros)
    part = local(param)
    offset = zeros
    if part.shape != param.shape and part.numel() > 0:
        chunk = param.__create_chunk_list__()[0]  # type: ignore[attr-defined]
        offset = tuple(chunk.offsets)
    mesh: Any = param.device_mesh  # type: ignore[attr-defined]
    placements: Any = param.placements  # type: ignore[attr-defined]
    cuts = [dim for dim, each in enumerate(placements) if not each.is_replicate()]
    shared = [dim for dim in cuts if mesh.size(dim) > 1]
    return Layout(
        shape=param.shape,
        local_shape=part.shape,
        offset=offset,
        sharded=True,
        groups=tuple(mesh.get_group(dim) for dim in shared),
        dims=tuple(placements[dim].dim for dim in shared),
        rows_are_whole=rows_are_whole(param),
        shards=math.prod(mesh.size(dim) for dim in cuts),
        reach=mesh.device_type,
    )


def is_sharded(param: Tensor) -> bool:
    """True for a DTensor, whatever its placements."""
    # Asked a thousand times in a step. DTensor's module is heavy: without it, nothing can be one.
    plain = type(param) in (Tensor, torch.nn.Parameter)
    module = None if plain else sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(param, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The shard of ``tensor`` on this rank, as an alias; itself if it is not a DTensor."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined]


def local_grad(param: Tensor) -> Tensor:
    """The gradient of this rank's shard of ``param``.

    Zeros where a DTensor has no gradient: another rank may have one, and all must decide alike.
    """
    if not is_sharded(param):
        assert param.grad is not None
        return param.grad
    if param.grad is None:
        return torch.zeros_like(local(param))
    grad: Any = param.grad
    if grad.placements != param.placements:  # type: ignore[attr-defined]
        # Tensor parallelism leaves partial sums where each rank has seen a part of the input.
        grad = grad.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    return local(grad)


@dataclass(frozen=True)
class Shards:
    """How a tensor is sharded over the ranks of one process group.

    Attributes:
        group: the process group.
        rank: this process's place in it.
        dim: the dimension that is sharded.
        sizes: along it, of each rank's shard; their sum is the tensor's.
    """

    group: Any
    rank: int
    dim: int
    sizes: tuple[int, ...]


def shards_of(param: Tensor, name: str) -> Shards | None:
    """How ``param`` is sharded; None if this rank has all of it.

    Raises:
        UnsupportedSetup: it is sharded over several dimensions of its mesh, as FSDP with
            tensor parallelism does, or not into consecutive shards.
    """
    if not is_sharded(param):
        return None
    mesh: Any = param.device_mesh  # type: ignore[attr-defined]
    cuts = [
        (dim, placement)
        for dim, placement in enumerate(param.placements)  # type: ignore[attr-defined]
        if not placement.is_replicate() and mesh.size(dim) > 1
    ]
    if not cuts:
        return None
    if len(cuts) > 1 or type(cuts[0][1]).__name__ != "Shard":
        raise UnsupportedSetup(
            f"{name} is sharded over {len(cuts)} dimensions of its device mesh "
            f"({param.placements}); direction 'spectral' gathers matrices that are sharded over "  # type: ignore[attr-defined]
            "one dimension, as by FSDP2 and HSDP. Leave out tensor parallelism, or use "
            "direction='momentum'."
        )
    mesh_dim, placement = cuts[0]
    dim, ranks, length = placement.dim, mesh.size(mesh_dim), param.shape[placement.dim]
    part = -(-length // ranks)
    sizes = tuple(min(part, max(0, length - rank * part)) for rank in range(ranks))
    return Shards(mesh.get_group(mesh_dim), mesh.get_local_rank(mesh_dim), dim, sizes)


def as_rows_of(param: Tensor, rows: Tensor) -> Tensor:
    """``rows``, a number for each of this rank's rows, as a tensor that is sharded like ``param``.

    An alias, so that what is written to one shows in the other.
    """
    if not is_sharded(param):
        return rows
    from torch.distributed.tensor import DTensor, Replicate

    placements = [
        placement if _cuts_rows_apart(placement) else Replicate()
        for placement in param.placements  # type: ignore[attr-defined]
    ]
    return DTensor.from_local(
        rows,
        param.device_mesh,  # type: ignore[attr-defined]
        placements,
        run_check=False,
        shape=param.shape[:1],
        stride=(1,),
    )


def zeros_along(param: Tensor, shape: Sequence[int], dims: Container[int]) -> Tensor:
    """Float32 zeros of ``shape`` that lie as ``param`` does along ``dims``, and else on each rank.

    ``shape`` has as many dimensions as the weight, and its lengths along ``dims``.
    """
    if not is_sharded(param):
        return torch.zeros(tuple(shape), dtype=torch.float32, device=param.device)
    from torch.distributed.tensor import DTensor, Replicate

    part = local(param)
    own = [part.shape[dim] if dim in dims else size for dim, size in enumerate(shape)]
    placements = [
        placement if getattr(placement, "dim", None) in dims else Replicate()
        for placement in param.placements  # type: ignore[attr-defined]
    ]
    return DTensor.from_local(
        torch.zeros(own, dtype=torch.float32, device=part.device),
        param.device_mesh,  # type: ignore[attr-defined]
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(tuple(shape), device="meta").stride(),
    )


def rows_are_whole(param: Tensor) -> bool:
    """True if a rank that has a part of a row has all of it."""
    return not is_sharded(param) or all(
        placement.is_replicate() or _cuts_rows_apart(placement)
        for placement in param.placements  # type: ignore[attr-defined]
    )


def _cuts_rows_apart(placement: Any) -> bool:
    # FSDP2 leaves a placement of its own where tensor parallelism has cut the same dimension.
    return getattr(placement, "dim", None) == 0


def refuse_inexact(param: Tensor, built_shape: torch.Size, name: str) -> None:
    """Refuse a ``param`` that is no longer the tensor the optimizer was built with.

    Raises:
        UnsupportedSetup: a DTensor of partial sums, FSDP1's flattened tensor, or another shape.
    """
    if is_sharded(param) and any(p.is_partial() for p in param.placements):  # type: ignore[attr-defined]
        raise UnsupportedSetup(
            f"{name} is a DTensor of partial sums ({param.placements}): no rank has its values. "  # type: ignore[attr-defined]
            "Shard or replicate it (Shard or Replicate placements)."
        )
    if getattr(param, "_fsdp_flattened", False):
        raise UnsupportedSetup(
            f"{name} is part of FSDP1's flat parameter, so the norm of the full tensor is lost. "
            "Use FSDP2 (fsdp_version: 2), DDP, or a single device."
        )
    if param.shape != built_shape:
        raise UnsupportedSetup(
            f"{name} has shape {tuple(param.shape)} where the optimizer was built with "
            f"{tuple(built_shape)}. If it was resized, as for new tokens, make the optimizer "
            "after that. FSDP1 and DeepSpeed ZeRO flatten weights, which loses their per-tensor "
            "norms: use FSDP2 (fsdp_version: 2), DDP, or a single device."
        )
