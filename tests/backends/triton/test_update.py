"""Every rule's update through a kernel ends at the bits of the loop, wherever the entries lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_relopt import Fromage
from hf_relopt.backends import foreach, loop
from hf_relopt.backends.part import Decision, Equation, Part, View
from hf_relopt.backends.triton import tiles, update
from hf_relopt.rules import adamw, madam, moments
from hf_relopt.rules.rounding import noise_keys
from hf_relopt.step.slot import slot_of
from tests.batches import SHAPES, batch_of, view_of
from tests.cases import HAS_TRITON
from tests.tensors import gradient, same_bits

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")

SHORT = (torch.bfloat16, torch.float16)
EQUATIONS: dict[str, tuple[Equation, tuple[str, ...], int]] = {
    "adamw": (
        Equation(adamw.update, {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}, False),
        ("lr", "correction1", "correction2"),
        2,
    ),
    "momentum": (Equation(moments.take_in, {"decay": 0.9}, True), (), 0),
    "look ahead": (Equation(moments.look_ahead, {"decay": 0.9}, True), (), 1),
    "square": (Equation(moments.take_in_square, {"decay": 0.9, "beta": 0.99}, False), (), 1),
}


@pytest.mark.parametrize("tile", [16, tiles.TILE])
@pytest.mark.parametrize("by_row", [(), (0, 3, 5)], ids=["tensors", "rows"])
@pytest.mark.parametrize(
    ("dtype", "noisy"),
    [*[(torch.float32, False), (torch.float64, False)], *[(d, n) for d in SHORT for n in (0, 1)]],
    ids=str,
)
def test_fromage_ends_at_the_bits_of_the_loop(
    dtype: torch.dtype, noisy: bool, by_row: tuple[int, ...], tile: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One weight may not move; long slices are cut where tiles are small."""
    monkeypatch.setattr(tiles, "TILE", tile)
    shapes = [*SHAPES, (40, 7), (3,), (), (0,)]
    one, other = (batch_of(dtype, shapes, bool(noisy), by_row) for _ in "ab")
    before = [weight.clone() for weight in one.weights()]
    loop.update(*one.given())
    update.update(*other.given())
    for start, weight, twin in zip(before, one.weights(), other.weights(), strict=True):
        assert same_bits(weight, twin)
        assert same_bits(start, weight) == (start is before[2] or not weight.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EQUATIONS)
def test_every_update_ends_where_the_loop_does(name: str, dtype: torch.dtype) -> None:
    equation, coefficients, buffers = EQUATIONS[name]
    ends = []
    for step in (loop.update, update.update):
        parts = _parts([(6, 5), (33,)], dtype, buffers)
        learn = torch.tensor([True, True])
        numbers = {each: torch.tensor([0.25, 0.5]) for each in coefficients}
        keys = noise_keys(1, torch.arange(2), torch.ones(2)) if dtype is torch.bfloat16 else None
        step(parts, equation, Decision(numbers, learn, learn, keys))
        ends.append([tensor for part in parts for tensor in part.tensors])
    for one, other in zip(*ends, strict=True):
        if name == "adamw":  # torch's own root on a CPU is off by a bit now and then
            assert float((one != other).double().mean()) < 0.2
            rtol = 1e-6 if one.dtype is torch.float32 else 0.01
            torch.testing.assert_close(one, other, rtol=rtol, atol=1e-7)
        else:
            assert same_bits(one, other)


@pytest.mark.parametrize("from_zero", [True, False])
def test_madam_ends_where_the_loop_does(from_zero: bool) -> None:
    """To the last digit but for the exponential, which is a kernel's own."""
    constants = {"beta": 0.9, "g_bound": 2.0, "min_scale": 0.1}
    ends = []
    for step in (loop.update, update.update):
        parts = _parts([(6, 5), (33,)], torch.float32, 1)
        numbers = {
            "lr": torch.tensor(0.125),  # one for all
            "inverse_correction": torch.tensor([10.0, 5.0]),
            "max_abs": torch.tensor([2.0, 3.0]),
        }
        if from_zero:
            numbers["additive"] = torch.tensor([False, True])
        learn = torch.tensor([True, True])
        step(parts, Equation(madam.update, constants, False), Decision(numbers, learn, learn, None))
        ends.append([tensor for part in parts for tensor in part.tensors])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-7, atol=0)


def _parts(shapes: list[tuple[int, ...]], dtype: torch.dtype, buffers: int) -> list[Part]:
    noise = torch.Generator().manual_seed(2)

    def draw(shape: tuple[int, ...], of: torch.dtype) -> Tensor:
        return torch.rand(shape, generator=noise).to(of)

    return [
        Part(
            view_of(place, shape),
            draw(shape, dtype) - 0.5,
            draw(shape, dtype) - 0.5,
            tuple([draw(shape, torch.float32) for _ in range(buffers)]),
        )
        for place, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("of_momentum", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of_gradient", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_followed_is_written_into_a_stack(
    of_momentum: torch.dtype, of_gradient: torch.dtype
) -> None:
    """Blocks of columns in bfloat16, one after the other, unless a gradient is not usable."""
    equation = Equation(moments.look_ahead, {"decay": 0.9}, False)
    ends = []
    for step in (loop.update, foreach.update, update.update):
        parts = []
        stack = torch.zeros(6, 8, 16, dtype=torch.bfloat16)
        for place, stacked in enumerate(stack.split(3)):
            full = gradient(torch.empty(8, 48), place).to(of_momentum)
            grad = gradient(torch.empty(8, 48), 5 + place).to(of_gradient)
            view = View(place, 1, (3, 8, 16), 0, (16, 48, 1), split=(1, 3, 16))
            parts.append(Part(view, view.of(full), view.of(grad), (stacked,)))
        learn = torch.tensor([True, False])
        keys = None
        if of_momentum is torch.bfloat16:
            keys = noise_keys(1, torch.arange(2), torch.ones(2))
        kept = parts[1].weight.clone()
        step(parts, equation, Decision({}, learn, learn, keys))
        assert same_bits(parts[1].weight, kept) and stack[:3].all() and not stack[3:].any()
        ends.append([stack, parts[0].weight])
    assert all(map(same_bits, ends[0], ends[1])) and all(map(same_bits, ends[0], ends[2]))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("layout", ["plain", "transposed", "other gradient"])
@pytest.mark.parametrize(("shape", "options"), [
    ((6, 4), {"scale": "row"}),
    ((6, 4), {"scale": "block", "split_sizes": 3}),
    ((32, 48), {"scale": "block", "split_sizes": 3, "split_dim": 1}),
    ((6, 4), {"scale": "block", "split_sizes": (1, 5)}),
    ((4, 6), {"scale": "block", "split_sizes": (1, 2, 3), "split_dim": 1}),
    ((3, 4, 2), {"scale": "block"}),
    ((4, 3, 2, 2), {"scale": "row"}),
], ids=str)  # fmt: skip
def test_slices_of_every_kind_of_view(
    shape: tuple[int, ...], options: dict[str, Any], layout: str, noisy: bool
) -> None:
    dtype = torch.bfloat16 if noisy else torch.float32
    ends = []
    for step in (loop.update, update.update):
        weight, grad = (gradient(torch.empty(shape, dtype=dtype), n) for n in (1, 2))
        if layout == "transposed":
            weight = _turned(weight)
        if layout != "plain":
            grad = _turned(grad)
        group = Fromage([nn.Parameter(weight)], **options).param_groups[0]
        slot = slot_of(0, group["params"][0], group, {})
        parts = [Part(v, v.of(weight), v.of(grad)) for v in slot.views(0)]
        count = slot.slices.count
        learn = torch.arange(count) != 1
        numbers = {
            name: torch.rand(count, generator=torch.Generator().manual_seed(3))
            for name in ("shrink", "move", "grad_norm")
        }
        keys = noise_keys(1, torch.arange(count), torch.ones(count)) if noisy else None
        equation = Equation(slot.method.rule.update, {}, False)
        step(parts, equation, Decision(numbers, learn, learn, keys))
        ends.append(weight)
    assert same_bits(*ends)


def _turned(tensor: Tensor) -> Tensor:
    """The same entries, lying in another order."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def test_gradients_of_several_dtypes_go_the_portable_way() -> None:
    one, other = (batch_of(torch.float32, [(6, 5), (4, 3)], False) for _ in "ab")
    for batch in (one, other):
        batch.parts[1] = batch.parts[1]._replace(source=batch.parts[1].source.float())
    loop.update(*one.given())
    update.update(*other.given())
    assert all(map(same_bits, one.weights(), other.weights()))


def test_what_has_too_many_strides_goes_the_portable_way(monkeypatch: pytest.MonkeyPatch) -> None:
    went = []
    portable = foreach.update
    monkeypatch.setattr(foreach, "update", lambda *given: (went.append(1), portable(*given)))
    one, other = (batch_of(torch.float32, [(2, 3, 4, 5)], False) for _ in "ab")
    every_other = torch.zeros(4, 6, 8, 10)[::2, ::2, ::2, ::2].copy_(other.parts[0].weight)
    other.parts[0] = other.parts[0]._replace(weight=every_other)
    loop.update(*one.given())
    update.update(*other.given())
    assert went and torch.equal(every_other, one.parts[0].weight)


def test_autograd_hears_of_what_a_kernel_writes() -> None:
    batch = batch_of(torch.float32, [(6, 5)], False)
    before = batch.parts[0].weight._version
    update.update(*batch.given())
    assert batch.parts[0].weight._version > before
