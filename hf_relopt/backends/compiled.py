"""The rule through torch.compile, one part at a time: one pass for the sums, one for the step.

The second pass follows the first at once, while a part of the tensor is still in the cache. A
compiled call costs tens of microseconds before it starts: small parts go the foreach way.

Everything that changes from step to step comes in as a tensor, so a schedule never recompiles.
Parts are stepped as flat tensors of unknown length, or as rows, so shapes do not recompile either.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends import foreach
from hf_relopt.backends import sums as portable
from hf_relopt.backends.kernel import write
from hf_relopt.backends.part import Decision, Direct, Equation, Part, View
from hf_relopt.rules.rule import Sums

_serial = itertools.count()

# Entries below which the compiled call costs more than it saves.
_SMALLEST = 2**14


def fault() -> str | None:
    """Compile next to nothing; what is in the way, a missing C++ compiler for example, or None."""
    try:
        if compile_once(_is_compiled)(torch.zeros(2, device="cpu")).any():
            return None
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "it is switched off"


def sums(parts: Sequence[Part], what: Sums) -> Tensor:
    """Like sums.sums, in one pass over each part that is one large slice."""
    large = [part.view.count == 1 and _is_worthwhile(*part.tensors[:2]) for part in parts]
    if not any(large) or parts[0].weight.device.type == "mps":
        return portable.sums(parts, what)
    kernel = _sums_kernel(parts[0].weight.dtype, what)
    rows = [
        kernel(_flat(part.weight), _flat(part.source)) if is_large else None
        for part, is_large in zip(parts, large, strict=True)
    ]
    small = [part for part, is_large in zip(parts, large, strict=True) if not is_large]
    if small:
        found = portable.sums(small, what).split([part.view.count for part in small])
        left = iter(found)
        rows = [next(left) if row is None else row for row in rows]
    return torch.cat(rows)  # type: ignore[arg-type]


def step_alone(work: Direct) -> list[int]:
    """Step the large parts, each from its own sums; return the places of the others."""
    if work.lr.device.type == "mps":
        return list(range(len(work.parts)))
    left: list[int] = []
    kernel = _whole_kernel(work.decide, work.sums, *_key(work.equation), work.number is not None)
    for place, part in enumerate(work.parts):
        if not _is_worthwhile(*part.tensors):
            left.append(place)
            continue
        one = slice(place, place + 1)
        number = None if work.number is None else work.number[one]
        tensors = tuple(map(_flat, part.tensors))
        kernel(tensors, work.states[place], work.numel[one], number, work.lr[one])
        _count_change(part.weight, *part.buffers)
    return left


def update(parts: Sequence[Part], equation: Equation, decision: Decision) -> None:
    """Step every part in place."""
    noisy = decision.keys is not None
    step = _step_kernel(parts[0].weight.dtype, *_key(equation), noisy, rows=False)
    left: list[Part] = []
    for part in parts:
        view = part.view
        if not _is_worthwhile(*part.tensors) or (noisy and not view.in_one_run):
            left.append(part)
            continue
        origin = wrapped(view.origin, part.weight.device) if noisy else None
        if view.count == 1:
            step(tuple(map(_flat, part.tensors)), decision.shaped(view.first, 1, 1), origin)
        else:
            in_rows = _step_kernel(parts[0].weight.dtype, *_key(equation), noisy, rows=True)
            tensors = tuple([_rows(tensor, view.count) for tensor in part.tensors])
            in_rows(tensors, _own_tensors(decision, view), origin)
        _count_change(part.weight, *part.buffers)
    if left:
        foreach.update(left, equation, decision)


def _is_compiled(x: Tensor) -> Tensor:
    return x + int(torch.compiler.is_compiling())


def _key(equation: Equation) -> tuple[Any, tuple[tuple[str, Any], ...], bool]:
    return equation.update, tuple(equation.constants.items()), equation.maximize


def wrapped(position: int, device: torch.device) -> Tensor:
    """A position in a full tensor as int32 (wrapping)."""
    signed = (position + 2**31) % 2**32 - 2**31
    return torch.tensor(signed, dtype=torch.int32).to(device, non_blocking=True)


def _is_worthwhile(*tensors: Tensor) -> bool:
    """Say whether flat views of these can be stepped, and are large enough to repay the call."""
    return tensors[0].numel() >= _SMALLEST and all([tensor.is_contiguous() for tensor in tensors])


def _flat(tensor: Tensor) -> Tensor:
    """A flat alias whose length a compiled program takes as unknown.

    Not a view: torch would compile once more for every rank of what it is a view of.
    """
    flat = tensor.view(-1).data
    torch._dynamo.mark_dynamic(flat, 0)
    return flat


def _rows(tensor: Tensor, count: int) -> Tensor:
    """An alias of [count, length], both of which a compiled program takes as unknown."""
    rows = tensor.view(count, -1).data
    for dim in (0, 1):
        torch._dynamo.maybe_mark_dynamic(rows, dim)
    return rows


def _own_tensors(decision: Decision, view: View) -> Decision:
    """What is decided on a view's slices, [count, 1], in tensors of their own."""

    def own(values: Tensor) -> Tensor:
        if values.dim() == 0:
            return values
        rows = values[view.first : view.first + view.count].clone().view(-1, 1)
        torch._dynamo.maybe_mark_dynamic(rows, 0)
        return rows

    return Decision(
        {name: own(values) for name, values in decision.coefficients.items()},
        own(decision.learn),
        own(decision.move),
        None if decision.keys is None else own(decision.keys),
    )


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
        columns.append(portable.cosine(columns[0], columns[1], (param * grad).sum()))
    return torch.stack(columns).unsqueeze(0)


@cache
def _sums_kernel(dtype: torch.dtype, what: Sums) -> Callable[[Tensor, Tensor], Tensor]:
    def squares(param: Tensor, grad: Tensor) -> Tensor:
        return _sums(param, grad, what)

    return compile_once(squares)


def _step(
    update: Any, constants: tuple[tuple[str, Any], ...], maximize: bool, noisy: bool
) -> Callable[..., None]:
    equation = Equation(update, dict(constants), maximize)

    def step(tensors: tuple[Tensor, ...], decided: Decision, origin: Tensor | None) -> None:
        position = None
        if noisy:
            weight = tensors[0]
            counted = torch.arange(weight.numel(), device=weight.device, dtype=torch.int32)
            position = counted.view(weight.shape)
            if origin is not None:
                position = position + origin
        write(tensors, equation, decided, position)

    return step


@cache
def _step_kernel(
    dtype: torch.dtype,
    update: Any,
    constants: tuple[tuple[str, Any], ...],
    maximize: bool,
    noisy: bool,
    *,
    rows: bool,
) -> Callable[..., None]:
    return compile_once(_step(update, constants, maximize, noisy))


@cache
def _whole_kernel(
    decide: Any,
    what: Sums,
    update: Any,
    constants: tuple[tuple[str, Any], ...],
    maximize: bool,
    noisy: bool,
) -> Callable[..., None]:
    """Sums, decision and step of one tensor in one program."""
    step = _step(update, constants, maximize, noisy)

    def whole(
        tensors: tuple[Tensor, ...],
        state: dict[str, Tensor],
        numel: Tensor,
        number: Tensor | None,
        lr: Tensor,
    ) -> None:
        rows = _sums(tensors[0], tensors[1], what)
        before = {name: value.view(1) for name, value in state.items()}
        after, decision = decide(before, rows, numel, number, lr)
        for name, value in after.items():
            state[name].copy_(value.view_as(state[name]))
        decided = Decision(
            {name: _stored(value) for name, value in decision.coefficients.items()},
            _stored(decision.learn),
            _stored(decision.move),
            None if decision.keys is None else _stored(decision.keys),
        )
        step(tensors, decided, None)

    return compile_once(whole)


def _stored(value: Tensor) -> Tensor:
    """The one entry of ``value``, put in memory: else its formula is evaluated for every weight."""
    return torch.as_strided(value.clone(), (), ())


def compile_once(function: Any) -> Callable[..., Any]:
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
