"""An equation on every part of a dtype in one launch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends import foreach
from hf_relopt.backends.kernel import columns_of, results
from hf_relopt.backends.part import Decision, Equation, Part
from hf_relopt.backends.triton.kernel import TILE_WARPS, kernel_of, launch
from hf_relopt.backends.triton.program import Program, program_of
from hf_relopt.backends.triton.tiles import Tiles, tiles_of
from hf_relopt.backends.triton.walk import both_ways, head, indented, position, reading


def update(parts: Sequence[Part], equation: Equation, decision: Decision) -> None:
    """Step every part in place."""
    columns = columns_of(parts)
    noisy = decision.keys is not None
    tiles = tiles_of([part.view for part in parts], columns, positions=noisy)
    if tiles is None:
        foreach.update(parts, equation, decision)
        return
    if not tiles.count:
        return
    fixed, free = _apart(equation.constants)
    numbers = {**decision.coefficients, **_on(columns[0][0].device, tuple(free.items()))}
    given = [decision.learn, decision.move, *numbers.values()]
    if decision.keys is not None:
        given.append(decision.keys)
    step = _step(
        equation.update,
        tuple(fixed.items()),
        equation.maximize,
        tuple([column[0].dtype for column in columns]),
        tuple([(name, _kind(each)) for name, each in numbers.items()]),
        noisy,
        tiles.strided,
        tiles.wide,
    )
    run(step, tiles, columns, given)


def run(
    kernel: Any,
    tiles: Tiles,
    columns: Sequence[Sequence[Tensor]],
    given: Iterable[Tensor],
    into: Sequence[Tensor] = (),
) -> None:
    """Run a kernel that steps the parts of some tiles.

    Args:
        columns: of the parts' weights, sources and buffers.
        given, into: packed numbers that it reads, and that it writes.
    """
    packed = [each if each.is_contiguous() else each.contiguous() for each in given]
    launch(
        kernel,
        tiles.count,
        columns[0][0].device,
        (tiles.programs, tiles.facts, tiles.addresses(columns), *packed, *into),
        {"ROWS": tiles.rows, "COLUMNS": tiles.columns},
        warps=TILE_WARPS,
    )
    # Autograd has to hear of what was written by address.
    written = [*columns[0], *[tensor for own in columns[2:] for tensor in own], *into]
    torch.autograd.graph.increment_version(written)


def _apart(constants: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Constants that are a part of the kernel, and numbers, for which it is not made anew.

    A schedule may change the decay of a momentum in each step.
    """
    free = {name: value for name, value in constants.items() if isinstance(value, float)}
    return {name: value for name, value in constants.items() if name not in free}, free


@lru_cache(maxsize=256)
def _on(device: torch.device, numbers: tuple[tuple[str, float], ...]) -> dict[str, Tensor]:
    """Numbers on a device, 0-dim and in float64, as they are in Python."""
    if not numbers:
        return {}
    values = torch.tensor([value for _, value in numbers], dtype=torch.float64, device="cpu")
    there = values.to(device, non_blocking=True).unbind()
    return {name: each for (name, _), each in zip(numbers, there, strict=True)}


@dataclass(frozen=True)
class Kind:
    """The dtype of a number of slices, and whether there is one for all."""

    dtype: torch.dtype
    single: bool

    @property
    def example(self) -> Tensor:
        """A tensor of the kind."""
        return torch.ones(() if self.single else (2,), dtype=self.dtype)


def _kind(values: Tensor) -> Kind:
    return Kind(values.dtype, values.dim() == 0)


@lru_cache(maxsize=256)
def _step(
    update: Any,
    constants: tuple[tuple[str, Any], ...],
    maximize: bool,
    dtypes: tuple[torch.dtype, ...],
    coefficients: tuple[tuple[str, Kind], ...],
    noisy: bool,
    strided: bool,
    wide: bool,
) -> Any:
    return kernel_of(
        text_of(
            Equation(update, dict(constants), maximize),
            dtypes,
            dict(coefficients),
            noisy=noisy,
            strided=strided,
            wide=wide,
        )
    )


def stepping(
    equation: Equation,
    dtypes: Sequence[torch.dtype],
    coefficients: Mapping[str, Kind],
    *,
    noisy: bool,
) -> tuple[Program, dict[str, Kind]]:
    """The program of one step, and the numbers that it takes after its tensors.

    If it is noisy, it takes the positions of the entries at last. Its results are what is to be
    in the place of the weights and the buffers.

    Args:
        dtypes, coefficients, noisy: see ``text_of``.
    """
    tensors = len(dtypes)
    each = Kind(torch.bool, False)
    numbers = {"may_learn": each, "may_move": each}
    numbers.update({f"given_{name}": kind for name, kind in coefficients.items()})
    if noisy:
        numbers["key"] = Kind(torch.int32, False)
    entries = [torch.ones(2, dtype=dtype) for dtype in dtypes]
    examples = [*entries, *[kind.example for kind in numbers.values()]]
    if noisy:
        examples.append(torch.ones(2, dtype=torch.int32))

    def function(*given: Tensor) -> list[Tensor]:
        named = dict(zip(numbers, given[tensors:], strict=False))
        decided = Decision(
            {name: named[f"given_{name}"] for name in coefficients},
            named["may_learn"],
            named["may_move"],
            named.get("key"),
        )
        return results(given[:tensors], equation, decided, given[-1] if noisy else None)

    return program_of(function, examples), numbers


def text_of(
    equation: Equation,
    dtypes: Sequence[torch.dtype],
    coefficients: Mapping[str, Kind],
    *,
    noisy: bool,
    strided: bool,
    wide: bool,
) -> str:
    """The kernel's text.

    Args:
        dtypes: of weights, sources and buffers.
        coefficients: the names and kinds of what is decided on slices.
        noisy: is the weight rounded stochastically?
        strided, wide: see Tiles.
    """
    tensors = len(dtypes)
    program, numbers = stepping(equation, dtypes, coefficients, noisy=noisy)
    inputs = [*[f"x{place}" for place in range(tensors)], *numbers]
    written = [0, *range(2, tensors)]

    def body(even: bool) -> list[str]:
        lines = reading(dtypes, strided=strided, wide=wide, even=even)
        if noisy:
            lines.append(f"position = {position(strided=strided)}")
        given = [*inputs, "position"] if noisy else inputs
        lines += program.lines(given, [f"y{place}" for place in written])
        return lines + [f"tl.store(p{place}, y{place}, mask=inside)" for place in written]

    loads = [
        f"{name} = tl.load({name}_at)"
        if kind.single
        else f"{name} = tl.load({name}_at + slice, mask=here, other=0)"
        for name, kind in numbers.items()
    ]
    lines = [*head(tensors), *loads, *both_ways(tensors, body(even=False), body(even=True))]
    pointers = ", ".join([f"{name}_at" for name in numbers])
    first = (
        f"def step(programs, facts, addresses, {pointers}, "
        "ROWS: tl.constexpr, COLUMNS: tl.constexpr):"
    )
    return "\n".join([first, *indented(lines), ""])
