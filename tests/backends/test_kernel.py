"""One step of one piece: the rule in its precision, rounding, and masks that keep every bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_relopt.backends.kernel import columns_of, results, write
from hf_relopt.backends.part import Decision, Equation, Part
from hf_relopt.rules.rounding import noise, noise_keys, stochastic_round
from tests.batches import view_of
from tests.tensors import bits, gradient, same_bits

NAN, INF = math.nan, math.inf


def halved(param: Tensor, grad: Tensor, *buffers: Tensor, size: Tensor) -> tuple[Tensor, ...]:
    """An equation for tests: its precision and the sign of the gradient show in the results."""
    return (param / 2 + size * grad, *[buffer + grad for buffer in buffers])


def decided(learn: bool = True, move: bool = True, keys: Tensor | None = None) -> Decision:
    size = torch.tensor(0.25)
    return Decision({"size": size}, torch.tensor(learn), torch.tensor(move), keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_rule_sees_float32_or_more_and_an_ascent_the_negated_gradient(
    dtype: torch.dtype, maximize: bool
) -> None:
    seen = []

    def update(param: Tensor, grad: Tensor, *buffers: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        seen.append((param.dtype, grad.dtype))
        return halved(param, grad, *buffers, size=size)

    weight, source = gradient(torch.empty(3, 2, dtype=dtype), 1), gradient(torch.empty(3, 2), 2)
    buffer = torch.zeros(3, 2)
    new, kept = results((weight, source, buffer), Equation(update, {}, maximize), decided(), None)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert seen == [(wide, wide)]
    sign = -1 if maximize else 1
    assert same_bits(new, (weight.to(wide) / 2 + sign * source.to(wide) / 4).to(dtype))
    assert torch.equal(kept, (sign * source.to(wide)).to(kept.dtype))


@pytest.mark.parametrize(("learn", "move"), [(True, False), (False, True), (False, False)])
def test_what_may_not_change_keeps_every_bit(learn: bool, move: bool) -> None:
    """-0.0, NaN and inf too, whatever the rule makes of them: no factor of 0 or 1 does that."""
    weight = torch.tensor([-0.0, 0.0, 1.0, 3e38, -1e-45, INF, NAN])
    buffer = weight.flip(0).clone()
    source = torch.tensor([NAN, INF, -INF, 3e38, -1.0, 0.0, 1.0])
    before = bits(weight), bits(buffer)
    write((weight, source, buffer), Equation(halved, {}, False), decided(learn, move), None)
    assert torch.equal(bits(weight), before[0]) is not move
    assert torch.equal(bits(buffer), before[1]) is not learn


def test_masks_and_coefficients_may_differ_from_slice_to_slice() -> None:
    weight, source = torch.ones(3, 2), torch.ones(3, 2)
    column = torch.tensor([[True], [False], [True]])
    size = torch.tensor([[0.0], [1.0], [2.0]])
    write((weight, source), Equation(halved, {}, False), Decision({"size": size}, column, column,
          None), None)  # fmt: skip
    assert weight.tolist() == [[0.5, 0.5], [1.0, 1.0], [2.5, 2.5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_is_drawn_by_key_and_position_or_not_at_all(dtype: torch.dtype) -> None:
    weight, source = gradient(torch.empty(64, dtype=dtype), 1), gradient(torch.empty(64), 2)
    key = noise_keys(3, torch.tensor([1]), torch.tensor([1.0]))[0]
    position = torch.arange(100, 164, dtype=torch.int32)
    equation = Equation(halved, {}, False)
    exact = weight.float() / 2 + source / 4
    (found,) = results((weight, source), equation, decided(keys=key), position)
    assert same_bits(found, stochastic_round(exact, dtype, noise(key, position)))
    for keys, positions in ((None, position), (key, None)):
        (nearest,) = results((weight, source), equation, decided(keys=keys), positions)
        assert same_bits(nearest, exact.to(dtype)) and not same_bits(nearest, found)


def test_a_buffer_of_another_dtype_is_written_in_its_own() -> None:
    weight, buffer = torch.ones(2), torch.ones(2, dtype=torch.float64)
    write((weight, torch.ones(2), buffer), Equation(halved, {}, False), decided(), None)
    assert buffer.dtype is torch.float64 and buffer.tolist() == [2.0, 2.0]


def test_columns_are_what_belongs_together_in_all_parts() -> None:
    tensors = [torch.full((2,), float(n)) for n in range(8)]
    parts = [
        Part(view_of(0, (2,)), tensors[0], tensors[1], (tensors[2], tensors[3])),
        Part(view_of(1, (2,)), tensors[4], tensors[5], (tensors[6], tensors[7])),
    ]
    found = [[int(tensor[0]) for tensor in column] for column in columns_of(parts)]
    assert found == [[0, 4], [1, 5], [2, 6], [3, 7]]
    without = [part._replace(buffers=()) for part in parts]
    assert len(columns_of(without)) == 2
