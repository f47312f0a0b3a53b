"""A small step on a device, before kernels are trusted there: they have to run, and be right."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_relopt.backends import loop
from hf_relopt.backends import sums as portable
from hf_relopt.backends.kernel import compute_dtype
from hf_relopt.backends.part import Decision, Equation, Part, View
from hf_relopt.backends.triton import packed, sums, update
from hf_relopt.rules import fromage
from hf_relopt.rules.rounding import ROUNDED_DTYPES, noise_keys

# An odd shape, so that tiles have ends, and one whose entries are read four at once.
_SHAPES = ((37, 41), (64, 96))


def fault(device: torch.device, dtype: torch.dtype) -> str | None:
    """What is in the way of kernels for weights of a dtype on a device, or None. Waits for it.

    Triton needs more than its package, a C compiler for the code that launches a kernel, say; and a
    new device or a new release may run a kernel and be wrong.
    """
    try:
        if not _agrees(device, dtype):
            return f"its kernels do not give PyTorch's numbers in {dtype}"
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Step some tensors both ways, along what was summed of them."""
    ends = []
    for sums_of, step in ((portable.sums, loop.update), (sums.sums, update.update)):
        parts = _parts(device, dtype)
        rows = sums_of(parts, "cosine")
        decision = _decide({"rows": rows[:, 0], "cosine": rows[:, 2]}, dtype)
        step(parts, Equation(fromage.update, {}, False), decision)
        ends.append((rows, [part.weight for part in parts]))
    (rows, weights), (our_rows, our_weights) = ends
    doubled = packed.work_out(_double, {"x": rows[:, 0]}, {})["x"]
    right = torch.allclose(rows, our_rows, rtol=1e-5, atol=1e-6)
    right &= torch.equal(doubled, 2 * rows[:, 0])
    short = dtype in ROUNDED_DTYPES
    for one, other in zip(weights, our_weights, strict=True):
        right &= torch.allclose(one, other, rtol=2**-7 if short else 1e-5, atol=1e-6)
        # Another digit of a norm may turn a rounding here and there; other noise turns a third.
        right &= not short or float((one != other).double().mean()) < 0.1
    return right


def _parts(device: torch.device, dtype: torch.dtype) -> list[Part]:
    found = []
    for place, shape in enumerate(_SHAPES):
        count = shape[0] * shape[1]
        # Numbers of every size and sign, the same on each device.
        line = torch.arange(count, dtype=torch.float32, device=device)
        weight, grad = torch.sin(line), torch.cos(7 * line)
        view = View(place, 1, shape, 0, (shape[1], 1))
        found.append(Part(view, weight.view(shape).to(dtype), grad.view(shape).to(dtype)))
    return found


def _decide(found: Mapping[str, Tensor], dtype: torch.dtype) -> Decision:
    norm = found["rows"]
    device = norm.device
    yes = torch.ones(len(norm), dtype=torch.bool, device=device)
    coefficients = {
        "shrink": torch.full_like(norm, 1e-3),
        "move": 0.5 + found["cosine"].abs(),
        "grad_norm": norm,
    }
    coefficients = {name: value.to(compute_dtype(dtype)) for name, value in coefficients.items()}
    keys = None
    if dtype in ROUNDED_DTYPES:
        keys = noise_keys(0, torch.arange(len(norm), device=device), torch.ones_like(norm))
    return Decision(coefficients, yes, yes, keys)


def _double(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"x": given["x"] * 2}
