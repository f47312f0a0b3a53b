"""The rule through torch.compile, one tensor at a time: one pass for the sums, one for the step.

Everything that changes from step to step comes in as a tensor, so a schedule never recompiles.
Tensors are stepped as flat views of unknown length, so shapes do not recompile either.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends import loop, sums
from hf_relopt.backends.batch import Batch, Scalars, Update, needs_noise, rule_step


def local_sums(params: Sequence[Tensor], grads: Sequence[Tensor], cosine: bool) -> Tensor:
    """Like sums.local_sums, in one pass over both tensors."""
    if params[0].device.type == "mps":
        return sums.local_sums(params, grads, cosine)
    kernel = _sums_kernel(params[0].dtype, cosine)
    rows = []
    for param, grad in zip(params, grads, strict=True):
        if _is_flat(param) and _is_flat(grad):
            rows.append(kernel(param.view(-1), grad.view(-1)))
        else:
            rows.append(_eager_squares(param, grad, cosine))
    squares = torch.stack(rows)
    norms = squares[:, :2].sqrt()
    return sums.with_cosine(norms[:, 0], norms[:, 1], squares[:, 2]) if cosine else norms


def apply(batch: Batch) -> None:
    """Run the rule for every tensor of the batch."""
    noisy = needs_noise(batch.params[0], batch.keys)
    kernel = _step_kernel(
        batch.update,
        batch.params[0].dtype,
        tuple(batch.constants.items()),
        noisy,
        batch.maximize,
    )
    for index, param in enumerate(batch.params):
        tensors = (param, batch.grads[index], *batch.buffers[index])
        if all(_is_flat(tensor) for tensor in tensors):
            flat, grad, *buffers = (tensor.view(-1) for tensor in tensors)
            kernel(flat, grad, tuple(buffers), batch.scalars(index))
        else:
            loop.apply_one(batch, index)


def _is_flat(tensor: Tensor) -> bool:
    # Lengths 0 and 1 would be compiled anew, as constants: the loop is quicker there.
    return tensor.is_contiguous() and tensor.numel() > 1


def _eager_squares(param: Tensor, grad: Tensor, cosine: bool) -> Tensor:
    row = sums.local_sums([param], [grad], cosine)[0]
    squares = [row[0] ** 2, row[1] ** 2]
    return torch.stack([*squares, row[2] * row[0] * row[1]] if cosine else squares)


@cache
def _sums_kernel(dtype: torch.dtype, cosine: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def squares(param: Tensor, grad: Tensor) -> Tensor:
        param, grad = param.to(torch.float64), grad.to(torch.float64)
        rows = [(param * param).sum(), (grad * grad).sum()]
        return torch.stack([*rows, (param * grad).sum()] if cosine else rows)

    return _compile(squares)


@cache
def _step_kernel(
    update: Update,
    dtype: torch.dtype,
    constants: tuple[tuple[str, object], ...],
    noisy: bool,
    maximize: bool,
) -> Callable[[Tensor, Tensor, tuple[Tensor, ...], Scalars], None]:
    def step(param: Tensor, grad: Tensor, buffers: tuple[Tensor, ...], scalars: Scalars) -> None:
        position = None
        if noisy:
            position = torch.arange(param.numel(), device=param.device, dtype=torch.int32)
        rule_step(update, param, grad, buffers, scalars, position, dict(constants), maximize)

    return _compile(step)


def _compile(function: Any) -> Callable[..., Any]:
    """torch.compile with a code object of its own.

    torch counts recompilations per code object and falls back to eager mode after eight: rules,
    dtypes and options are different programs, and each deserves its own count.
    """
    own = types.FunctionType(
        function.__code__.replace(co_name=function.__name__),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return torch.compile(own, dynamic=True, fullgraph=True)
