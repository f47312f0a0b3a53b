"""The rule through torch.compile, one tensor at a time: one pass for the sums, one for the step.

A compiled call costs tens of microseconds before it starts: small tensors go the foreach way.

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

from hf_relopt.backends import foreach, loop, sums
from hf_relopt.backends.batch import Batch, Scalars, Update, needs_noise, rule_step
from hf_relopt.sharding import Sums

_serial = itertools.count()

# Entries below which the compiled call costs more than it saves.
_SMALLEST = 2**14


def local_sums(params: Sequence[Tensor], grads: Sequence[Tensor], what: Sums) -> Tensor:
    """Like sums.local_sums, in one pass over each tensor that is large enough."""
    pairs = list(zip(params, grads, strict=True))
    large = [i for i, pair in enumerate(pairs) if _is_worthwhile(*pair)]
    if not large or params[0].device.type == "mps":
        return sums.local_sums(params, grads, what)
    parts = [_large_sums([pairs[i] for i in large], what)]
    small = sorted(set(range(len(pairs))) - set(large))
    if small:
        parts.append(sums.local_sums([params[i] for i in small], [grads[i] for i in small], what))
    places = torch.tensor([*large, *small]).argsort().to(params[0].device, non_blocking=True)
    return torch.cat(parts)[places]


def _large_sums(pairs: Sequence[tuple[Tensor, Tensor]], what: Sums) -> Tensor:
    kernel = _squares_kernel(pairs[0][0].dtype, what)
    squares = torch.stack([kernel(param.view(-1), grad.view(-1)) for param, grad in pairs])
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
    small: list[int] = []
    for index, param in enumerate(batch.params):
        tensors = (param, batch.grads[index], *batch.buffers[index])
        if param.numel() < _SMALLEST:
            small.append(index)
        elif _is_worthwhile(*tensors):
            flat, grad, *buffers = (tensor.view(-1) for tensor in tensors)
            kernel(flat, grad, tuple(buffers), batch.scalars(index))
        else:
            loop.apply_one(batch, index)
    foreach.apply_small(batch, small)


def _is_worthwhile(*tensors: Tensor) -> bool:
    """Say whether flat views of these can be stepped, and are large enough to repay the call."""
    return tensors[0].numel() >= _SMALLEST and all(tensor.is_contiguous() for tensor in tensors)


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
