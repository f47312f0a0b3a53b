"""Local norms and inner products, for a hundred million entries and squares beyond float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_relopt.backends import stacks
from hf_relopt.backends.batch import constant, piece_size, pieces
from hf_relopt.sharding import Sums

# Entries that are summed at once, without a look for pieces.
_ONE_PIECE = 2**14


def local_sums(params: Sequence[Tensor], grads: Sequence[Tensor], what: Sums) -> Tensor:
    """|g|, |W| and <W,g>/(|W||g|) of T tensors, as far as ``what`` asks: float64 [T, 1 to 3].

    Where the device has no float64 the tensors are scaled by their largest entry first.
    """
    if params[0].device.type == "mps":
        return _scaled_sums(params, grads, what)
    if what == "cosine" and stacks.are_worthwhile(params[0].device):
        return _stacked_sums(params, grads)
    columns = [_norms(grads)]
    if what != "grad":
        columns.append(_norms(params))
    if what == "cosine":
        inner = torch.stack([_dot(p, g) for p, g in zip(params, grads, strict=True)])
        columns.append(cosine(columns[0], columns[1], inner))
    return torch.stack(columns, dim=1)


def in_order(rows: Sequence[Tensor], order: list[int]) -> Tensor:
    """The rows of all parts by the places that ``order`` gives them."""
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return torch.cat(list(rows))[constant(back, torch.int64, rows[0].device)]


def cosine(grad_norm: Tensor, param_norm: Tensor, inner: Tensor) -> Tensor:
    """<W, g> / (|W| |g|), which is 0 where one of them is 0."""
    product = grad_norm * param_norm
    return torch.where(product > 0, inner / product, 0.0)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    if stacks.are_worthwhile(tensors[0].device):
        return torch.stack(torch._foreach_norm(list(tensors), 2, torch.float64))
    # The CPU's own float64 norm of a float32 tensor is nine times slower than this.
    return torch.stack([_dot(tensor, tensor) for tensor in tensors]).sqrt()


def _stacked_sums(params: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """|g|, |W| and the cosine, for all tensors of one shape together: float64 [T, 3]."""
    limit = stacks.LARGEST
    order: list[int] = []
    rows: list[Tensor] = []
    sizes = [param.numel() for param in params]
    for places in stacks.stacks([param.shape for param in params], sizes, limit):
        order += places
        if sizes[places[0]] > limit:
            (place,) = places
            w, g = params[place], grads[place]
            rows.append(torch.stack([*_norms([g, w]), _dot(w, g)]).unsqueeze(0))
            continue
        w, g = (
            torch.stack([tensors[place] for place in places])
            .reshape(len(places), -1)
            .to(torch.float64)
            for tensors in (params, grads)
        )
        norms = [torch.linalg.vector_norm(g, dim=1), torch.linalg.vector_norm(w, dim=1)]
        rows.append(torch.stack([*norms, w.mul_(g).sum(dim=1)], dim=1))
    grad_norm, param_norm, inner = in_order(rows, order).unbind(dim=1)
    return torch.stack([grad_norm, param_norm, cosine(grad_norm, param_norm, inner)], dim=1)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """<left, right> summed in float64, a piece at a time."""
    if left.numel() <= _ONE_PIECE:
        wide = left.reshape(-1).to(torch.float64)
        return torch.dot(wide, wide if left is right else right.reshape(-1).to(torch.float64))
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    # Half as many entries as elsewhere: they are twice as wide here.
    for piece in pieces((left, right), piece_size(left.device) // 2):
        a, b = piece.tensors
        wide = a.to(torch.float64).reshape(-1)
        other = wide if left is right else b.to(torch.float64).reshape(-1)
        total = total + torch.dot(wide, other)
    return total


def _scaled_sums(params: Sequence[Tensor], grads: Sequence[Tensor], what: Sums) -> Tensor:
    """The same in float32: each tensor is divided by its largest entry before it is squared."""
    rows = [_scaled_row(p, g, what) for p, g in zip(params, grads, strict=True)]
    return torch.stack(rows)


def _scaled_row(param: Tensor, grad: Tensor, what: Sums) -> Tensor:
    unit_grad, grad_scale = _scale(grad)
    grad_norm = torch.linalg.vector_norm(unit_grad)
    row = [grad_norm * grad_scale]
    if what != "grad":
        unit_param, param_scale = _scale(param)
        param_norm = torch.linalg.vector_norm(unit_param)
        row.append(param_norm * param_scale)
        if what == "cosine":
            row.append(cosine(grad_norm, param_norm, (unit_param * unit_grad).sum()))
    return torch.stack(row)


def _scale(tensor: Tensor) -> tuple[Tensor, Tensor]:
    wide = tensor.to(torch.float32)
    largest = wide.abs().amax() if wide.numel() else wide.new_zeros(())
    scale = torch.where(largest > 0, largest, 1.0)
    return wide / scale, scale
