"""What the laws are made of: small tensors, their bits, their gradients, and how near is near."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.cases import Case

Optimizer = torch.optim.Optimizer
SHAPE = (4, 3)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# relative size of one unit in the last place
ULP = {
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
    torch.float32: 2.0**-23,
    torch.float64: 2.0**-52,
}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers: tells -0.0 from 0.0 and equals itself on NaN."""
    plain = tensor.detach().clone(memory_format=torch.contiguous_format)
    return plain.view(_BITS[tensor.element_size()])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(bits(one), bits(other))


def snapshot(params: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [param.detach().clone() for param in params]


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    """A dense tensor, one with zero entries of both signs, and a zero-start one with -0.0s."""
    gen = torch.Generator().manual_seed(7)
    dense, holed = (0.1 * torch.randn(SHAPE, generator=gen, dtype=torch.float64) for _ in "ab")
    holed[0], holed[1, 0] = 0.0, -0.0
    zero = torch.zeros(SHAPE, dtype=torch.float64)
    zero[0] = -0.0
    return [nn.Parameter(weight.to(dtype)) for weight in (dense, holed, zero)]


def gradient(like: torch.Tensor, seed: int, scale: float = 1.0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(like.shape, generator=gen, dtype=torch.float64)).to(like.dtype)


def set_gradients(params: list[nn.Parameter], seed: int, sign: float = 1.0) -> None:
    for index, param in enumerate(params):
        param.grad = gradient(param, 100 * seed + index, sign)


def run(optimizer: Optimizer, params: list[nn.Parameter], steps: Iterable[int]) -> None:
    """One step per number, each with gradients that depend on the number alone."""
    for number in steps:
        set_gradients(params, number)
        optimizer.step()


def start(
    case: Case, backend: str, dtype: torch.dtype, **options: Any
) -> tuple[list[nn.Parameter], Optimizer]:
    params = weights(dtype)
    return params, case.make(params, backend=backend, **options)


def to_nearest(dtype: torch.dtype) -> dict[str, str]:
    """The option, where it says something: the compiled backend has a program for each option."""
    return {"rounding": "nearest"} if dtype.itemsize == 2 else {}


def state_of(optimizer: Optimizer, param: nn.Parameter) -> dict[str, Any]:
    return optimizer.state.get(param, {})


def anchors_of(optimizer: Optimizer, param: nn.Parameter) -> list[float]:
    return state_of(optimizer, param)["anchor_norm"].tolist()


def norm(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().norm())


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def assert_close(now: list[torch.Tensor], then: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Equal up to the rounding of two float32 computations (and of the weight's own dtype)."""
    rel = max(2 * ULP[dtype], 4e-7)
    for one, other in zip(now, then, strict=True):
        if not other.numel():
            continue
        size = float(other.detach().double().abs().max())
        gap = float((one.detach().double() - other.detach().double()).abs().max())
        assert gap <= rel * size, f"differ by {gap:.3e}, allowed {rel * size:.3e}"


def assert_near_oracle(
    param: torch.Tensor,
    expected: np.ndarray,
    dtype: torch.dtype,
    steps: int,
    slack: float = 0.0,
    size: float | None = None,
) -> None:
    """Within one rounding of the dtype per step of the float64 trajectory, in relative norm.

    slack: what a step may be off beyond its rounding. size: the norm that the roundings are of, if
    the weight has been larger on the way than it is at the end.
    """
    gap = float(np.linalg.norm(to_numpy(param) - expected))
    size = float(np.linalg.norm(expected)) if size is None else size
    allowed = (max(ULP[dtype], 3e-7) + slack) * steps * size
    assert gap <= allowed, f"off the oracle by {gap:.3e}, allowed {allowed:.3e}"


def assert_as_on_another_cpu(found: torch.Tensor, there: torch.Tensor, name: str) -> None:
    """What a machine with other last digits of roots and products has come to.

    What a lost count, moment or anchor changes is a thousand times as much.
    """
    short = found.dtype is torch.bfloat16
    if short:
        # A last digit may turn what noise rounds up or down, in one entry of a hundred.
        assert float((found != there).double().mean()) < 0.02, name
    torch.testing.assert_close(found, there, rtol=2**-7 if short else 2e-6, atol=1e-7, msg=name)
