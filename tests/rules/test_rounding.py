"""Stochastic rounding: unbiased, exact where exact is possible, and a function of four numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.rules.rounding import noise, noise_keys, stochastic_round
from tests.cases import BACKENDS, CASES, DEFAULTS, Case
from tests.tensors import ULP, bits, gradient, run, same_bits, snapshot

LOW = (torch.bfloat16, torch.float16)
ALL_BITS = torch.arange(65536, dtype=torch.int32)


def _name(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


each_low = pytest.mark.parametrize("dtype", LOW, ids=_name)
each_default = pytest.mark.parametrize("case", DEFAULTS, ids=_name)


def _every_number(dtype: torch.dtype) -> torch.Tensor:
    """All finite numbers of a 16-bit dtype."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = patterns.view(dtype)
    return numbers[torch.isfinite(numbers)]


def _noise_of(seed: int, index: int, step: int, count: int = 65536) -> torch.Tensor:
    key = noise_keys(seed, torch.tensor([index]), torch.tensor([float(step)]))[0]
    return noise(key, torch.arange(count, dtype=torch.int32))


# --- the function -------------------------------------------------------------------------


@each_low
def test_a_number_of_the_dtype_stays_itself(dtype: torch.dtype) -> None:
    """-0.0 and subnormals too: an entry without a push keeps every bit under any noise."""
    numbers = _every_number(dtype)
    for value in (0, 1, 77, 32768, 65472, 65503, 65535):
        drawn = torch.full(numbers.shape, value, dtype=torch.int32)
        rounded = stochastic_round(numbers.float(), dtype, drawn)
        wrong = bits(rounded) != bits(numbers)
        assert not wrong.any(), f"noise {value}: {numbers[wrong][:5].tolist()} changed"


@each_low
def test_nan_and_inf_stay_themselves(dtype: torch.dtype) -> None:
    special = torch.tensor([math.nan, math.inf, -math.inf])
    for value in (0, 65535):
        rounded = stochastic_round(special, dtype, torch.full((3,), value, dtype=torch.int32))
        assert rounded[0].isnan() and rounded[1:].tolist() == [math.inf, -math.inf]


@each_low
def test_a_number_within_the_dtypes_range_stays_finite(dtype: torch.dtype) -> None:
    """Rounding up from just below the largest number ends there; nearest would too."""
    largest = torch.finfo(dtype).max
    values = torch.tensor([largest, -largest, largest * (1 - 1e-6), largest * (1 + 1e-6)])
    assert torch.isfinite(values.to(dtype)).all()
    for value in (0, 65535):
        rounded = stochastic_round(values, dtype, torch.full((4,), value, dtype=torch.int32))
        assert torch.isfinite(rounded).all(), f"{values.tolist()} became {rounded.tolist()}"


@pytest.mark.parametrize(
    "value", [1.0 + 1e-3, -1.0 - 1e-4, 0.3, -7.7, 3e-5, -2e-6, 5e-8, -1e-8, 1.7e-3, 123.4]
)
@each_low
def test_over_all_noise_the_mean_is_the_value(dtype: torch.dtype, value: float) -> None:
    exact = torch.full((65536,), value)
    rounded = stochastic_round(exact, dtype, ALL_BITS).double()
    below, above = float(rounded.min()), float(rounded.max())
    spacing = above - below
    assert below <= float(exact[0]) <= above and len(rounded.unique()) <= 2
    assert float(rounded.mean()) == pytest.approx(float(exact[0]), abs=2**-12 * spacing, rel=0)


@each_low
def test_neighbours_are_the_nearest_two(dtype: torch.dtype) -> None:
    gen = torch.Generator().manual_seed(0)
    values = torch.randn(20000, generator=gen) * 10 ** (4 * torch.rand(20000, generator=gen) - 3)
    drawn = torch.randint(0, 65536, values.shape, generator=gen, dtype=torch.int32)
    rounded = stochastic_round(values, dtype, drawn).double()
    nearest = values.to(dtype)
    side = torch.where(values.double() > nearest.double(), math.inf, -math.inf)
    other = torch.nextafter(nearest, side.to(dtype)).double()
    assert ((rounded == nearest.double()) | (rounded == other)).all()
    assert (rounded == other).any() and (rounded == nearest.double()).any()


# --- the noise ----------------------------------------------------------------------------


def test_noise_is_uniform() -> None:
    drawn = _noise_of(0, 0, 1, 2**20)
    assert int(drawn.min()) >= 0 and int(drawn.max()) < 65536
    counts = torch.bincount((drawn >> 8).long(), minlength=256).double()
    expected = 2**20 / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 255 - 5 * 22.6 < chi_square < 255 + 5 * 22.6  # 255 degrees of freedom, 5 sigma
    low_bits = torch.bincount((drawn & 255).long(), minlength=256).double()
    assert float(((low_bits - expected) ** 2 / expected).sum()) < 255 + 5 * 22.6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 0, 1), (1, 0, 1)),
        ((0, 0, 1), (-1, 0, 1)),
        ((0, 0, 1), (2**40, 0, 1)),
        ((0, 0, 1), (0, 1, 1)),
        ((0, 0, 1), (0, 0, 2)),
        ((0, 1, 2), (0, 2, 1)),
        ((3, 0, 1000), (3, 1000, 0)),
    ],
)
def test_noise_of_other_seeds_parameters_and_steps_is_independent(
    one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    a, b = _noise_of(*one).double(), _noise_of(*other).double()
    correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(a.numel())
    assert float((a == b).double().mean()) < 1e-3


def test_noise_of_neighbours_and_of_steps_in_a_row_is_independent() -> None:
    drawn = torch.stack([_noise_of(0, 4, step, 4096) for step in range(1, 65)]).double()
    for distance in (1, 2, 3, 32, 64, 256, 1024):
        for a, b in (
            (drawn[:, distance:], drawn[:, :-distance]),
            (drawn[distance:], drawn[:-distance]) if distance < 64 else (None, None),
        ):
            if a is None:
                continue
            pair = torch.stack([a.flatten(), b.flatten()])
            limit = 5 / math.sqrt(pair.shape[1])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < limit, f"distance {distance}"
    # over the steps each position sees both halves of the range
    assert float((drawn.mean(0) / 65536 - 0.5).abs().max()) < 6 / math.sqrt(12 * 64)


# --- through the optimizers ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*[("foreach", dtype) for dtype in LOW], ("compiled", torch.bfloat16)],
    ids=_name,
)
@pytest.mark.parametrize("build", [Fromage, Madam])
def test_a_small_step_moves_the_mean(build: type, dtype: torch.dtype, backend: str) -> None:
    """A relative step of 1e-4 is lost to rounding to nearest, and right on average otherwise."""
    for rounding in ("nearest", None):
        param = nn.Parameter(torch.ones(500_000, dtype=dtype))
        param.grad = torch.ones_like(param)
        build([param], lr=1e-4, rounding=rounding, backend=backend).step()
        moved = 1.0 - float(param.detach().double().mean())
        if rounding == "nearest":
            assert moved == 0.0
        else:  # five standard deviations of the mean of as many draws
            spacing = ULP[dtype] / 2
            deviation = math.sqrt(1e-4 / spacing) * spacing / math.sqrt(param.numel())
            assert abs(moved - 1e-4) < 5 * deviation + 1e-8


@each_low
@each_default
def test_over_many_seeds_the_mean_is_the_float32_step(case: Case, dtype: torch.dtype) -> None:
    start, seeds = gradient(torch.empty(4, 3, dtype=dtype), 5, 0.1), 200
    grad = gradient(start, 6)
    wide = nn.Parameter(start.float())
    wide.grad = grad.float()
    case.make([wide], lr=1e-3).step()
    total = torch.zeros(4, 3, dtype=torch.float64)
    for seed in range(seeds):
        param = nn.Parameter(start.clone())
        param.grad = grad.clone()
        case.make([param], lr=1e-3, seed=seed).step()
        total += param.detach().double()
    gap = (total / seeds - wide.detach().double()).abs()
    # the spread of one draw is at most half a spacing
    limit = 5 * 0.5 * ULP[dtype] * wide.detach().double().abs() / math.sqrt(seeds)
    assert (gap <= limit).all()


@each_low
@pytest.mark.parametrize("case", [c for c in CASES if c.takes_any_shape], ids=_name)
def test_noise_hangs_on_seed_parameter_step_and_position_alone(
    case: Case, dtype: torch.dtype
) -> None:
    def second(shapes: list[tuple[int, ...]], seed: int = 3) -> torch.Tensor:
        params = [nn.Parameter(gradient(torch.empty(s, dtype=dtype), 1, 0.1)) for s in shapes]
        optimizer = case.make(params, lr=0.01, seed=seed)
        for step in (1, 2):
            for param in params:
                param.grad = gradient(param, step)
            optimizer.step()
        return params[1].detach().clone()

    here = second([(2, 3), (16, 8)])
    assert same_bits(here, second([(50, 70), (16, 8), (5,), (9, 9)]))
    assert not same_bits(here, second([(2, 3), (16, 8)], seed=4))


def test_noise_of_a_part_is_that_of_the_whole() -> None:
    """Position counts in the whole tensor: large tensors stepped in pieces round as small ones do.

    Under Madam every entry goes its own way, so a tensor's head must equal a shorter tensor.
    """
    ends = []
    for rows in (20, 3000):
        weight = gradient(torch.empty(3000, 256, dtype=torch.bfloat16), 1, 0.1)[:rows].clone()
        param = nn.Parameter(weight)
        param.grad = gradient(torch.empty(3000, 256, dtype=torch.bfloat16), 2)[:rows].clone()
        Madam([param], lr=0.01, p_scale=100.0).step()
        ends.append(param.detach()[:20])
    assert float((ends[0] != ends[1]).double().mean()) < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
@each_default
def test_a_large_tensor_rounds_alike_in_every_layout(case: Case, backend: str) -> None:
    """Beyond a piece's size it is stepped in parts, cut along another dimension in each layout."""
    # Kernels have tiles, not pieces, and an interpreter here.
    blocks = 30 if backend == "triton" else 600
    start = gradient(torch.empty(blocks, 10, 10, 8, dtype=torch.bfloat16), 1, 0.1)
    layouts = {
        "plain": lambda tensor: tensor.clone(),
        "channels_last": lambda tensor: tensor.to(memory_format=torch.channels_last),
        "transposed": lambda tensor: tensor.transpose(0, 3).contiguous().transpose(0, 3),
        "small dimension first": lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1),
    }
    ends = []
    for layout in layouts.values():
        param = nn.Parameter(layout(start))
        param.grad = gradient(start, 2)
        case.make([param], lr=0.01, backend=backend).step()
        ends.append(param.detach())
    for end in ends[1:]:
        assert float((end != ends[0]).double().mean()) < 0.01
    moved = (ends[0] != start).double().mean()
    assert float(moved) > 0.3


@each_default
def test_same_shaped_neighbours_round_apart(case: Case) -> None:
    params = [nn.Parameter(torch.ones(64, 16, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = case.make(params, lr=1e-3)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    first = snapshot(params)
    assert not same_bits(*first)
    with torch.no_grad():
        for param in params:
            param.fill_(1.0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert not any(same_bits(a, b) for a, b in zip(first, params, strict=True)), "steps round apart"


@each_default
def test_float32_and_float64_take_no_notice_of_rounding(case: Case) -> None:
    for dtype in (torch.float32, torch.float64):
        ends = []
        for options in ({"rounding": "nearest"}, {"rounding": "stochastic", "seed": 9}):
            params = [nn.Parameter(gradient(torch.empty(4, 3, dtype=dtype), 1))]
            run(case.make(params, **options), params, (1, 2))
            ends.append(params[0])
        assert same_bits(*ends)
