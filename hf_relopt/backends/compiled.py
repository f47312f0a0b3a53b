"""The rule through torch.compile, one tensor at a time: one pass for the sums, one for the step.

Everything that changes from step to step comes in as a tensor, so a schedule never recompiles.
Tensors are stepped as flat views of unknown length, so shapes do not recompile either.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends import loop, sums
from hf_relopt.backends.batch import Batch, Scalars, Update, needs_noise, rule_step
from hf_relopt.sharding import Sums

_serial = itertools.count()


def local_sums(params: Sequence[Tensor], grads: Sequence[Tensor], what: Sums) -> Tensor:
    """Like sums.local_sums, in one pass over the tensors."""
    if params[0].device.type == "mps":
        return sums.local_sums(params, grads, what)
    kernel = _squares_kernel(params[0].dtype, what)
    rows = []
    for param, grad in zip(params, grads, strict=True):
        if _is_flat(param) and _is_flat(grad):
            rows.append(kernel(param.view(-1), grad.view(-1)))
        else:
            rows.append(_eager_squares(param, grad, what))
    squares = torch.stack(rows)
    columns = list(squares[:, :2].sqrt().unbind(dim=1))
    if what == "cosine":
        columns.append(sums.cosine(columns[0], columns[1], squares[:, 2]))
    return torch.stack(columns, dim=1)


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


def _eager_squares(param: Tensor, grad: Tensor, what: Sums) -> Tensor:
    row = sums.local_sums([param], [grad], what)[0].unbind()
    squares = [norm * norm for norm in row[:2]]
    return torch.stack([*squares, row[2] * row[0] * row[1]] if what == "cosine" else squares)


@cache
def _squares_kernel(dtype: torch.dtype, what: Sums) -> Callable[[Tensor, Tensor], Tensor]:
    def squares(param: Tensor, grad: Tensor) -> Tensor:
        grad = grad.to(torch.float64)
        rows = [(grad * grad).sum()]
        if what != "grad":
            param = param.to(torch.float64)
            rows.append((param * param).sum())
        if what == "cosine":
            rows.append((param * grad).sum())
        return torch.stack(rows)

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
    dtypes and options are different programs, and each deserves its own count. The name makes them
    unequal, since equal code objects are taken for one.
    """
    name = f"{function.__name__}_{next(_serial)}"
    own = types.FunctionType(
        function.__code__.replace(co_name=name),
        function.__globals__,
        name,
        function.__defaults__,
        function.__closure__,
    )
    return torch.compile(own, dynamic=True, fullgraph=True)
