"""Traced functions end at torch's bits, operator by operator, in Triton's interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_relopt.backends.triton import packed
from hf_relopt.backends.triton.program import Value, literal, program_of
from tests.cases import HAS_TRITON
from tests.tensors import same_bits

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")

SPECIAL = (0.0, -0.0, 1.0, -2.5, 1e-30, 3e38, math.inf, -math.inf, math.nan, 0.1)
FLOATS = (torch.float32, torch.float64)


def _values(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each pair of special values."""
    one = torch.tensor(SPECIAL, dtype=dtype)
    return one.repeat_interleave(len(one)), one.repeat(len(one))


def _both(function: Callable[..., Tensor], *given: Tensor) -> tuple[Tensor, Tensor]:
    """What torch and a kernel make of the same tensors."""
    names = [f"given{place}" for place in range(len(given))]

    def formula(named):  # type: ignore[no-untyped-def]
        return {"found": function(*[named[name] for name in names])}

    found = packed.work_out(formula, dict(zip(names, given, strict=True)), {})
    return function(*given), found["found"]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a + b,
        lambda a, b: a - b * 0.1,
        lambda a, b: 1 - a,
        lambda a, b: a / b,
        lambda a, b: 1 / b,
        lambda a, b: -a,
        lambda a, b: a.square(),
        lambda a, b: torch.minimum(a, b),
        lambda a, b: torch.maximum(a, b),
        lambda a, b: a.clamp(min=0.1),
        lambda a, b: a.clamp(-1.5, 2.0),
        lambda a, b: torch.where(a < b, a, 0.0),
        lambda a, b: torch.where((a >= b) & torch.isfinite(a), a, b),
        lambda a, b: torch.where(torch.isnan(a) | ~(b > 0), a, b.abs()),
        lambda a, b: torch.where(a == b, torch.ones_like(a), torch.zeros_like(b)),
        lambda a, b: torch.where(a != 0, torch.full_like(a, 3.0), b.floor()),
        lambda a, b: a + (b <= 1),
        lambda a, b: a.to(torch.float16).to(a.dtype) + b,
    ],
    ids=range(18),
)
def test_an_operator_is_torchs(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    expected, found = _both(function, *_values(dtype))
    # Of what is no number, one is as good as another.
    assert same_bits(torch.nan_to_num(expected, 7.0), torch.nan_to_num(found, 7.0))
    assert torch.equal(torch.isnan(expected), torch.isnan(found))


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: (a * -0x7A143595) ^ (b >> 13),
        lambda a, b: (a & 0xFFFF) + b,
        lambda a, b: a.view(torch.float32).view(torch.int32) & -65536,
    ],
    ids=range(3),
)
def test_integers_wrap_and_shift_as_torchs_do(function: Callable[..., Tensor]) -> None:
    given = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31), 123456789], dtype=torch.int32)
    expected, found = _both(function, given, given.flip(0))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("base", [0.0, 0.9, 0.999])
def test_a_power_of_a_decay(base: float) -> None:
    steps = torch.tensor([0.0, 1.0, 2.0, 10.0, 1e5], dtype=torch.float64)
    expected, found = _both(lambda t: 1 - base**t, steps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_roots_and_exponentials(dtype: torch.dtype) -> None:
    """torch's own root on a CPU is off by a bit now and then."""
    given = torch.linspace(-20, 20, 401, dtype=dtype)
    for function in (torch.exp, lambda a: torch.sqrt(a.abs())):
        expected, found = _both(function, given)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [1.0, 1.00390625, 1.01171875, -3.0078125, 1e-30, math.inf])
def test_a_bfloat16_is_rounded_to_the_nearest(value: float) -> None:
    """1.0039 and 1.0117 lie halfway between two of them: ties go to the even one."""
    given = torch.tensor([value, math.nan])
    expected, found = _both(lambda a: a.to(torch.bfloat16).to(torch.float32), given)
    assert same_bits(expected[:1], found[:1]) and bool(found[1].isnan())


def test_a_number_keeps_its_dtype() -> None:
    """A bare 0.1 would be a float32 in the middle of a float64 formula."""
    given = torch.tensor([3.0], dtype=torch.float64)
    expected, found = _both(lambda a: a * 0.1, given)
    assert same_bits(expected, found)
    assert literal(math.inf, torch.float32) == 'tl.full([], float("inf"), tl.float32)'
    assert Value("x", torch.int64).to(torch.bool) == "(x != tl.full([], 0, tl.int64))"


def test_what_is_not_entry_by_entry_is_refused() -> None:
    program = program_of(lambda a: [a.cumsum(0)], [torch.ones(2)])
    with pytest.raises(NotImplementedError, match=r"cumsum.*not entry by entry"):
        program.lines(["x"], ["y"])
    program = program_of(lambda a: [a**3], [torch.ones(2)])
    with pytest.raises(NotImplementedError, match="power 3"):
        program.lines(["x"], ["y"])
