"""Rows in one launch: summed, decided on and stepped while a program has them at hand.

A row that fits a tile is read once. Its norms, what is decided on it and its update are what the
kernels of sums.py, packed.py and update.py are made of, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from hf_relopt.backends.kernel import columns_of
from hf_relopt.backends.packed import Formula
from hf_relopt.backends.part import Equation, OneLook
from hf_relopt.backends.triton.kernel import kernel_of
from hf_relopt.backends.triton.packed import traced
from hf_relopt.backends.triton.sums import product, scaled
from hf_relopt.backends.triton.tiles import tiles_of
from hf_relopt.backends.triton.update import Kind, run, stepping
from hf_relopt.backends.triton.walk import both_ways, head, indented, position, reading
from hf_relopt.rules.rule import Sums, Update

Kinds = tuple[tuple[torch.dtype, int], ...]
_SUMS = ("grad_norm", "param_norm", "cosine")


def step(look: OneLook) -> bool:
    """Step every part in place; False, and nothing is done, where a slice does not fit a tile."""
    columns = columns_of(look.parts)
    tiles = tiles_of([part.view for part in look.parts], columns, positions=look.is_noisy)
    if tiles is None or tiles.most > 1 or look.equation.constants:
        return False
    if not tiles.count:
        return True
    kernel = _kernel(
        look.equation.update,
        look.equation.maximize,
        look.sums,
        look.formula,
        tuple([column[0].dtype for column in columns]),
        tuple(look.given),
        tuple([(tensor.dtype, tensor.dim()) for tensor in look.given.values()]),
        tuple(look.into),
        look.is_noisy,
        tiles.strided,
        tiles.wide,
    )
    run(kernel, tiles, columns, look.given.values(), list(look.into.values()))
    return True


@lru_cache(maxsize=256)
def _kernel(
    update: Update,
    maximize: bool,
    sums: Sums,
    formula: Formula,
    dtypes: tuple[torch.dtype, ...],
    names: tuple[str, ...],
    kinds: Kinds,
    into: tuple[str, ...],
    noisy: bool,
    strided: bool,
    wide: bool,
) -> Any:
    text = text_of(
        Equation(update, {}, maximize), sums, formula, dtypes, names, kinds, into,
        noisy=noisy, strided=strided, wide=wide,
    )  # fmt: skip
    return kernel_of(text)


def text_of(
    equation: Equation,
    sums: Sums,
    formula: Formula,
    dtypes: Sequence[torch.dtype],
    names: Sequence[str],
    kinds: Kinds,
    into: Sequence[str],
    *,
    noisy: bool,
    strided: bool,
    wide: bool,
) -> str:
    """The kernel's text.

    Args:
        dtypes: of weights, sources and buffers.
        names, kinds: of the packed numbers: their dtypes, and 0 dimensions where there is one.
        into: names of the results of the formula that are kept.
        noisy: is the weight rounded stochastically?
        strided, wide: see Tiles.
    """
    tensors = len(dtypes)
    summed = _SUMS if sums == "cosine" else _SUMS[:2]
    program, results = traced(
        formula, (*names, *summed), (*kinds, *[(torch.float64, 1)] * len(summed))
    )
    dtype_of = dict(zip(results, program.results, strict=True))
    decided = [name for name in results if name not in into]
    numbers = {name: Kind(dtype_of[name], False) for name in decided}
    coefficients = {
        name: kind for name, kind in numbers.items() if name not in ("may_move", "keys")
    }
    update, taken = stepping(equation, dtypes, coefficients, noisy=noisy)
    written = [0, *range(2, tensors)]

    def body(even: bool) -> list[str]:
        lines = reading(dtypes, strided=strided, wide=wide, even=even)
        if noisy:
            lines.append(f"position = {position(strided=strided)}")
        for place in (1, 0):
            lines += scaled(place, dtypes[place])
        lines += [
            f"grad_norm = tl.sqrt({product(1, 1)})",
            f"param_norm = tl.sqrt({product(0, 0)})",
        ]
        if sums == "cosine":
            lines += [
                "lengths = grad_norm * param_norm",
                f"cosine = tl.where(lengths > 0, {product(1, 0)} / lengths, 0.0)",
            ]
        known = [*[f"n_{name}" for name in names], *summed]
        lines += program.lines(known, [f"r_{name}" for name in results])
        lines += [f"tl.store(to_{name} + slice, r_{name}, mask=here)" for name in into]
        own = {"may_learn": "n_learn", "may_move": "r_may_move", "key": "r_keys"}
        inputs = [f"x{place}" for place in range(tensors)]
        inputs += [own.get(name, f"r_{name.removeprefix('given_')}") for name in taken]
        inputs += ["position"] if noisy else []
        lines += update.lines(inputs, [f"y{place}" for place in written])
        return lines + [f"tl.store(p{place}, y{place}, mask=inside)" for place in written]

    loads = [
        f"n_{name} = tl.load(at_{name} + slice, mask=here, other=0)"
        if dims
        else f"n_{name} = tl.load(at_{name})"
        for name, (_, dims) in zip(names, kinds, strict=True)
    ]
    lines = [*head(tensors), *loads, *both_ways(tensors, body(even=False), body(even=True))]
    pointers = [*[f"at_{name}" for name in names], *[f"to_{name}" for name in into]]
    first = (
        f"def step_rows(programs, facts, addresses, {', '.join(pointers)}, "
        "ROWS: tl.constexpr, COLUMNS: tl.constexpr):"
    )
    return "\n".join([first, *indented(lines), ""])
