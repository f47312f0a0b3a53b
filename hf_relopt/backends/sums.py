"""Local norms and inner products, for a hundred million entries and squares beyond float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_relopt.backends.batch import piece_size


def local_sums(params: Sequence[Tensor], grads: Sequence[Tensor], cosine: bool) -> Tensor:
    """|W|, |g| and (if ``cosine``) <W,g>/(|W||g|) of T tensors: float64 [T, 2 or 3].

    Where the device has no float64 the tensors are scaled by their largest entry first.
    """
    if params[0].device.type == "mps":
        return _scaled_sums(params, grads, cosine)
    param_norms, grad_norms = _norms(params), _norms(grads)
    if not cosine:
        return torch.stack([param_norms, grad_norms], dim=1)
    inner = torch.stack([_dot(p, g) for p, g in zip(params, grads, strict=True)])
    return with_cosine(param_norms, grad_norms, inner)


def with_cosine(param_norms: Tensor, grad_norms: Tensor, inner: Tensor) -> Tensor:
    """Stack the norms with inner / (|W||g|), which is 0 where one of them is 0."""
    product = param_norms * grad_norms
    return torch.stack(
        [param_norms, grad_norms, torch.where(product > 0, inner / product, 0.0)], dim=1
    )


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(list(tensors), 2, torch.float64))
    # The CPU's own float64 norm of a float32 tensor is nine times slower than this.
    return torch.stack([_dot(tensor, tensor) for tensor in tensors]).sqrt()


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """<left, right> summed in float64, a piece at a time."""
    # Entries pair up by index: both in row-major order, or both in the same other memory order.
    if left.stride() != right.stride() or not left.is_contiguous():
        left, right = left.contiguous(), right.contiguous()
    left, right = left.reshape(-1), right.reshape(-1)
    size = piece_size(left.device) // 2
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    for a, b in zip(left.split(size), right.split(size), strict=True):
        wide = a.to(torch.float64)
        total = total + torch.dot(wide, wide if b is a else b.to(torch.float64))
    return total


def _scaled_sums(params: Sequence[Tensor], grads: Sequence[Tensor], cosine: bool) -> Tensor:
    """The same in float32: each tensor is divided by its largest entry before it is squared."""
    rows = [_scaled_row(p, g, cosine) for p, g in zip(params, grads, strict=True)]
    return torch.stack(rows)


def _scaled_row(param: Tensor, grad: Tensor, cosine: bool) -> Tensor:
    unit_param, param_scale = _scale(param)
    unit_grad, grad_scale = _scale(grad)
    param_norm = torch.linalg.vector_norm(unit_param)
    grad_norm = torch.linalg.vector_norm(unit_grad)
    row = [param_norm * param_scale, grad_norm * grad_scale]
    if cosine:
        inner = (unit_param * unit_grad).sum() / (param_norm * grad_norm)
        row.append(torch.where(param_norm * grad_norm > 0, inner, 0.0))
    return torch.stack(row)


def _scale(tensor: Tensor) -> tuple[Tensor, Tensor]:
    wide = tensor.to(torch.float32)
    largest = wide.abs().amax() if wide.numel() else wide.new_zeros(())
    scale = torch.where(largest > 0, largest, 1.0)
    return wide / scale, scale
