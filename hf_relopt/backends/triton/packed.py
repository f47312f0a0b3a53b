"""A formula on packed numbers in one launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends.packed import Formula
from hf_relopt.backends.triton.kernel import kernel_of, launch
from hf_relopt.backends.triton.program import Program, program_of
from hf_relopt.backends.triton.walk import indented

# Numbers that a program has.
_SIZE = 256


def work_out(
    formula: Formula, given: Mapping[str, Tensor], into: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Like work_out in backends/packed.py. All results are [n]."""
    names = tuple(given)
    kinds = tuple([(tensor.dtype, tensor.dim()) for tensor in given.values()])
    work = _work(formula, names, kinds)
    packed = [tensor for tensor in given.values() if tensor.dim()]
    n, device = len(packed[0]), packed[0].device
    found = {
        name: torch.empty(n, dtype=dtype, device=device)
        for name, dtype in zip(work.results, work.program.results, strict=True)
        if name not in into
    }
    found.update(into)
    if n:
        strides = [tensor.stride(0) if tensor.dim() else 0 for tensor in given.values()]
        results = [found[name] for name in work.results]
        arguments = (*given.values(), *strides, *results, n)
        launch(work.kernel, -(-n // _SIZE), device, arguments, {})
    if into:
        torch.autograd.graph.increment_version(list(into.values()))
    return found


@dataclass(frozen=True)
class _Work:
    """A kernel, the program that it runs, and the names of its results in their order."""

    kernel: Any
    program: Program
    results: tuple[str, ...]


@lru_cache(maxsize=256)
def _work(
    formula: Formula, names: tuple[str, ...], kinds: tuple[tuple[torch.dtype, int], ...]
) -> _Work:
    program, results = traced(formula, names, kinds)
    integers = [*[f"x{place}_stride" for place in range(len(names))], "n"]
    return _Work(kernel_of(text_of(program), integers), program, results)


def traced(
    formula: Formula, names: Sequence[str], kinds: Sequence[tuple[torch.dtype, int]]
) -> tuple[Program, tuple[str, ...]]:
    """The program of a formula, and the names of its results.

    Args:
        kinds: the dtype and the dimensions, 0 or 1, of each given tensor.
    """
    results: list[str] = []

    def function(*given: Tensor) -> list[Tensor]:
        found = formula(dict(zip(names, given, strict=True)))
        results[:] = found
        return list(found.values())

    like = [torch.ones((2,) * dims, dtype=dtype) for dtype, dims in kinds]
    return program_of(function, like), tuple(results)


def text_of(program: Program) -> str:
    """The kernel's text."""
    given = [f"x{place}" for place in range(len(program.dtypes))]
    found = [f"y{place}" for place in range(len(program.results))]
    lines = [
        f"at = tl.program_id(0).to(tl.int64) * {_SIZE} + tl.arange(0, {_SIZE})",
        "here = at < n",
        *[f"{x} = tl.load({x}_at + at * {x}_stride, mask=here, other=0)" for x in given],
        *program.lines(given, found),
        *[f"tl.store({y}_at + at, {y}, mask=here)" for y in found],
    ]
    arguments = [
        *[f"{x}_at" for x in given],
        *[f"{x}_stride" for x in given],
        *[f"{y}_at" for y in found],
        "n",
    ]
    return "\n".join([f"def work({', '.join(arguments)}):", *indented(lines), ""])
