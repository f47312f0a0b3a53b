"""Whole norms: the one place that turns local sums into numbers about whole logical tensors.

This is the only file that knows DTensor. Norms of all tensors of a step are summed together: one
all-reduce for each process group over which something is sharded (one for FSDP2, one for HSDP, two
for FSDP with tensor parallelism), whatever the number of tensors.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

    @classmethod
    def of_rows(cls, rows: Tensor) -> WholeNorms:
        """From [T, 1 to 3]: |g|, |W| and the cosine, as far as there are columns."""
        columns = rows.unbind(dim=1)
        return cls(*columns, *[None] * (3 - len(columns)))


@dataclass(frozen=True)
class Place:
    """Where the part that a rank holds lies in the whole tensor: its first entry, per dimension."""

    whole_shape: torch.Size
    first: tuple[int, ...]


def is_sharded(param: Tensor) -> bool:
    """True for a DTensor, whatever its placements."""
    # Asked a thousand times in a step. DTensor's module is heavy: without it, nothing can be one.
    plain = type(param) in (Tensor, torch.nn.Parameter)
    module = None if plain else sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(param, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` on this rank, as an alias; itself if it is not a DTensor."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined]


def local_grad(param: Tensor) -> Tensor:
    """The gradient of this rank's part of ``param``.

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


def takes_part(param: Tensor) -> bool:
    """Say whether ``param`` is stepped: with a gradient, or a DTensor that may have one elsewhere.

    Which tensors take part in a collective must not depend on what one rank has seen.
    """
    return param.grad is not None or (is_sharded(param) and param.requires_grad)


def place_of(param: Tensor) -> Place | None:
    """Where this rank's part of ``param`` begins; None if the part is the whole tensor."""
    if not is_sharded(param) or local(param).shape == param.shape:
        return None
    if local(param).numel() == 0:
        return Place(param.shape, (0,) * param.dim())
    chunk = param.__create_chunk_list__()[0]  # type: ignore[attr-defined]
    return Place(param.shape, tuple(chunk.offsets))


@dataclass(frozen=True)
class Cut:
    """How a tensor is cut over the ranks of one process group.

    Attributes:
        group: the process group.
        rank: this process's place in it.
        dim: the dimension that is cut.
        sizes: along it, of each rank's part; their sum is the tensor's.
    """

    group: Any
    rank: int
    dim: int
    sizes: tuple[int, ...]


def cut_of(param: Tensor, name: str) -> Cut | None:
    """How ``param`` is cut; None if this rank has all of it.

    Raises:
        UnsupportedSetup: it is sharded over several dimensions of its mesh, as FSDP with
            tensor parallelism does, or not into consecutive shards.
    """
    if not _groups(param):
        return None
    mesh: Any = param.device_mesh  # type: ignore[attr-defined]
    cuts = [
        (dim, placement)
        for dim, placement in enumerate(param.placements)  # type: ignore[attr-defined]
        if not placement.is_replicate() and mesh.size(dim) > 1
    ]
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
    return Cut(mesh.get_group(mesh_dim), mesh.get_local_rank(mesh_dim), dim, sizes)


def parts_of(param: Tensor) -> int:
    """Into how many parts ``param`` is cut; 1 if it is whole."""
    if not is_sharded(param):
        return 1
    mesh: Any = param.device_mesh  # type: ignore[attr-defined]
    placements = enumerate(param.placements)  # type: ignore[attr-defined]
    return math.prod(mesh.size(dim) for dim, each in placements if not each.is_replicate())


def one_per_row(param: Tensor, value: float) -> Tensor:
    """float32 [rows]: ``value`` for each index of the first dimension, cut as ``param`` is."""
    if not is_sharded(param):
        return torch.full(param.shape[:1], value, dtype=torch.float32, device=param.device)
    from torch.distributed.tensor import DTensor, Replicate

    placements = [
        placement if _cuts_rows_apart(placement) else Replicate()
        for placement in param.placements  # type: ignore[attr-defined]
    ]
    part = local(param)
    rows = torch.full(part.shape[:1], value, dtype=torch.float32, device=part.device)
    return DTensor.from_local(
        rows,
        param.device_mesh,  # type: ignore[attr-defined]
        placements,
        run_check=False,
        shape=param.shape[:1],
        stride=(1,),
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


def reachable(tensor: Tensor, param: Tensor) -> Tensor:
    """``tensor`` where the process groups of ``param`` work: offloaded shards lie away from it."""
    return tensor.to(_reachable(param, tensor.device))


def whole_norms(
    params: Sequence[Sequence[Tensor]], indices: Sequence[Sequence[int]], rows: Sequence[Tensor]
) -> list[WholeNorms]:
    """Turn norms and cosines of local parts into those of whole tensors.

    Args:
        params: for each batch of a step its tensors.
        indices: their numbers in the optimizer, which are the same on every rank.
        rows: their local [T, 1 to 3]: |g|, |W| and the cosine.
    """
    cuts = [[bool(_groups(param)) for param in batch] for batch in params]
    if not any(map(any, cuts)):
        return [WholeNorms.of_rows(part) for part in rows]
    padded = [torch.nn.functional.pad(part, (0, 3 - part.shape[1])) for part in rows]
    sums = sum_over_shards(params, indices, [_squares(part) for part in padded])
    whole = []
    for cut, part, given in zip(cuts, sums, rows, strict=True):
        # What is not sharded keeps its norm to the last bit.
        mask = torch.tensor(cut).to(given.device, non_blocking=True).unsqueeze(1)
        columns = given.shape[1]
        whole.append(WholeNorms.of_rows(torch.where(mask, _norms(part)[:, :columns], given)))
    return whole


def sum_over_shards(
    params: Sequence[Sequence[Tensor]], indices: Sequence[Sequence[int]], sums: Sequence[Tensor]
) -> list[Tensor]:
    """Add what every rank has summed over its part of each tensor; one all-reduce per group.

    Args:
        params, indices: as for :func:`whole_norms`.
        sums: for each batch its [T, k], with the same k everywhere.
    Returns: new tensors of the same shapes. Rows of tensors that are not sharded stay.
    """
    result = [part.clone() for part in sums]
    members: dict[tuple[Any, torch.device], list[tuple[int, int]]] = {}
    # In the order of the numbers: how a rank has batched its tensors must not matter.
    for _, b, t in sorted((n, b, t) for b, part in enumerate(indices) for t, n in enumerate(part)):
        for group in _groups(params[b][t]):
            members.setdefault((group, result[b].device), []).append((b, t))
    for (group, device), places in members.items():
        stacked = torch.stack([result[b][t] for b, t in places])
        first_batch, first = places[0]
        reduced = stacked.to(_reachable(params[first_batch][first], device))
        torch.distributed.all_reduce(reduced, group=group)
        rows = reduced.to(device).unbind()
        torch._foreach_copy_([result[b][t] for b, t in places], list(rows))
    return result


def _groups(param: Tensor) -> list[Any]:
    """The process groups over which ``param`` is cut, in the order of its mesh."""
    if not is_sharded(param):
        return []
    mesh = param.device_mesh  # type: ignore[attr-defined]
    return [
        mesh.get_group(dim)
        for dim, placement in enumerate(param.placements)  # type: ignore[attr-defined]
        if not placement.is_replicate() and mesh.size(dim) > 1
    ]


def _squares(rows: Tensor) -> Tensor:
    """[T, 3]: |g|^2, |W|^2 and <W,g>. float64 has room for them."""
    grad, param, cosine = rows.unbind(dim=1)
    return torch.stack([grad * grad, param * param, cosine * grad * param], dim=1)


def _norms(sums: Tensor) -> Tensor:
    grad, param = sums[:, :2].sqrt().unbind(dim=1)
    product = grad * param
    cosine = torch.where(product > 0, sums[:, 2] / product, 0.0)
    return torch.stack([grad, param, cosine], dim=1)


def _reachable(param: Tensor, device: torch.device) -> torch.device:
    """Where the mesh's process groups work: offloaded shards lie on the CPU, away from it."""
    kind = param.device_mesh.device_type  # type: ignore[attr-defined]
    return device if device.type == kind else torch.device(kind)


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
