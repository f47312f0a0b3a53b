"""The rule through torch.compile, one tensor at a time: one pass for the sums, one for the step.

The second pass follows the first at once, while a part of the tensor is still in the cache. A
compiled call costs tens of microseconds before it starts: small tensors go the foreach way.

Everything that changes from step to step comes in as a tensor, so a schedule never recompiles.
Tensors are stepped as flat ones of unknown length, so shapes do not recompile either.
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
from hf_relopt.backends.batch import (
    Batch,
    Decide,
    Scalars,
    Update,
    Work,
    first_position,
    needs_noise,
    rule_step,
)
from hf_relopt.sharding import Sums, WholeNorms

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
    return sums.in_order(parts, [*large, *small])


def _large_sums(pairs: Sequence[tuple[Tensor, Tensor]], what: Sums) -> Tensor:
    kernel = _sums_kernel(pairs[0][0].dtype, what)
    return torch.cat([kernel(_flat(param), _flat(grad)) for param, grad in pairs])


def step_alone(work: Work) -> list[int]:
    """Step the large tensors, each from its own sums; return the places of the others."""
    if work.lr.device.type == "mps":
        return list(range(len(work.params)))
    left: list[int] = []
    kernel = _whole_kernel(
        work.decide,
        work.sums,
        work.update,
        tuple(work.constants.items()),
        needs_noise(work.params[0], work.index),
        work.maximize,
    )
    for place, param in enumerate(work.params):
        tensors = (param, work.grads[place], *work.buffers[place])
        if not _is_worthwhile(*tensors):
            left.append(place)
            continue
        flat, grad, *buffers = map(_flat, tensors)
        index = work.index[place] if work.index is not None else None
        kernel(flat, grad, tuple(buffers), work.state[place], work.numel[place], index, work.lr)
        _count_change(param, *work.buffers[place])
    return left


def apply(batch: Batch) -> None:
    """Run the rule for every tensor of the batch."""
    noisy = needs_noise(batch.params[0], batch.keys)
    step = _step_kernel(
        batch.params[0].dtype,
        batch.update,
        tuple(batch.constants.items()),
        noisy,
        batch.maximize,
    )
    small: list[int] = []
    for index, param in enumerate(batch.params):
        tensors = (param, batch.grads[index], *batch.buffers[index])
        if not foreach.in_one_run(batch, index):
            loop.apply_one(batch, index)
        elif param.numel() < _SMALLEST:
            small.append(index)
        elif _is_worthwhile(*tensors):
            flat, grad, *buffers = map(_flat, tensors)
            first = _first(batch, index) if noisy else None
            step(flat, grad, tuple(buffers), batch.scalars(index), first)
            _count_change(param, *batch.buffers[index])
        else:
            loop.apply_one(batch, index)
    foreach.apply_small(batch, small)


def _first(batch: Batch, index: int) -> Tensor:
    """int32: the position in the whole tensor of this part's first entry (wrapping)."""
    first = first_position(batch.places[index], batch.params[index].shape) or 0
    signed = (first + 2**31) % 2**32 - 2**31
    return torch.tensor(signed, dtype=torch.int32).to(batch.params[index].device, non_blocking=True)


def _is_worthwhile(*tensors: Tensor) -> bool:
    """Say whether flat views of these can be stepped, and are large enough to repay the call."""
    return tensors[0].numel() >= _SMALLEST and all(tensor.is_contiguous() for tensor in tensors)


def _flat(tensor: Tensor) -> Tensor:
    """A flat alias whose length a compiled program takes as unknown.

    Not a view: torch would compile once more for every rank of what it is a view of.
    """
    flat = tensor.view(-1).data
    torch._dynamo.mark_dynamic(flat, 0)
    return flat


def _count_change(*tensors: Tensor) -> None:
    """Tell autograd what was written through an alias, as an in-place operation would."""
    torch.autograd.graph.increment_version(tensors)


def _sums(param: Tensor, grad: Tensor, what: Sums) -> Tensor:
    """float64 [1, 1 to 3]: |g|, |W| and their cosine, as far as ``what`` asks."""
    grad = grad.to(torch.float64)
    columns = [(grad * grad).sum().sqrt()]
    if what != "grad":
        param = param.to(torch.float64)
        columns.append((param * param).sum().sqrt())
    if what == "cosine":
        columns.append(sums.cosine(columns[0], columns[1], (param * grad).sum()))
    return torch.stack(columns).unsqueeze(0)


@cache
def _sums_kernel(dtype: torch.dtype, what: Sums) -> Callable[[Tensor, Tensor], Tensor]:
    def squares(param: Tensor, grad: Tensor) -> Tensor:
        return _sums(param, grad, what)

    return _compile(squares)


def _step(
    update: Update,
    constants: tuple[tuple[str, object], ...],
    noisy: bool,
    maximize: bool,
) -> Callable[..., None]:
    def step(
        param: Tensor,
        grad: Tensor,
        buffers: tuple[Tensor, ...],
        scalars: Scalars,
        first: Tensor | None = None,
    ) -> None:
        position = None
        if noisy:
            position = torch.arange(param.numel(), device=param.device, dtype=torch.int32)
            if first is not None:
                position = position + first
        rule_step(update, param, grad, buffers, scalars, position, dict(constants), maximize)

    return step


@cache
def _step_kernel(
    dtype: torch.dtype,
    update: Update,
    constants: tuple[tuple[str, object], ...],
    noisy: bool,
    maximize: bool,
) -> Callable[..., None]:
    return _compile(_step(update, constants, noisy, maximize))


@cache
def _whole_kernel(
    decide: Decide,
    what: Sums,
    update: Update,
    constants: tuple[tuple[str, object], ...],
    noisy: bool,
    maximize: bool,
) -> Callable[..., None]:
    """Sums, decision and step of one tensor in one program."""
    step = _step(update, constants, noisy, maximize)

    def whole(
        param: Tensor,
        grad: Tensor,
        buffers: tuple[Tensor, ...],
        state: dict[str, Tensor],
        numel: Tensor,
        index: Tensor | None,
        lr: Tensor,
    ) -> None:
        before = {name: value.to(torch.float64).view(1) for name, value in state.items()}
        norms = WholeNorms.of_rows(_sums(param, grad, what))
        index = None if index is None else index.view(1)
        decision = decide(before, norms, numel.view(1), index, lr)
        for name, value in decision.state.items():
            state[name].copy_(value.view_as(state[name]))
        scalars = Scalars(
            {name: _stored(value) for name, value in decision.coefficients.items()},
            _stored(decision.learn),
            _stored(decision.move),
            None if decision.keys is None else _stored(decision.keys),
        )
        step(param, grad, buffers, scalars)

    return _compile(whole)


def _stored(value: Tensor) -> Tensor:
    """The one entry of ``value``, put in memory: else its formula is evaluated for every weight."""
    return torch.as_strided(value.clone(), (), ())


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
    # A program is looked up by all that it was made from, so our modules need no look at each call.
    unguarded = getattr(torch.compiler, "skip_guard_on_globals_unsafe", None)
    options = {"guard_filter_fn": unguarded} if unguarded else {}
    return torch.compile(own, fullgraph=True, options=options)
