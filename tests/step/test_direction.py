"""Directions: what comes of the moments; vectors, and the size of gradients, under each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_relopt import Fromage
from hf_relopt.backends.stacks import joined
from hf_relopt.plans.directions import READ_BY
from hf_relopt.step.bundle import Bundle
from hf_relopt.step.decide import Judged, Verdict
from hf_relopt.step.direction import _stacks, directions
from hf_relopt.step.lineup import Slots
from hf_relopt.step.moments import take_in
from hf_relopt.step.portions import Portion
from tests.cases import MIN_SCALE
from tests.frames import each_own_direction, each_pair, frame_of
from tests.oracles.frame import parts, polar_express
from tests.tensors import assert_close, gradient, norm, run, same_bits, snapshot, state_of, to_numpy

# --- rows and blocks ----------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["spectral", "sinkhorn"])
def test_a_step_inside_autocast_is_the_step_outside(direction: str) -> None:
    """Its matrices are multiplied in the precision that the step has chosen."""
    ends = []
    for inside in (False, True):
        param = nn.Parameter(gradient(torch.empty(40, 30), 1, 0.1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            run(Fromage([param], lr=0.02, direction=direction), [param], (1, 2, 3))
        ends.append(param)
    assert same_bits(*ends)


# --- vectors and scales of gradients ------------------------------------------------------


def _matrix() -> nn.Parameter:
    """A spectral direction without one is refused."""
    return nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(5,), (), (1,), (1, 5), (5, 1, 1)], ids=str)
@each_own_direction
def test_vectors_go_the_same_way_under_every_direction(
    direction: str, shape: tuple[int, ...]
) -> None:
    """Whatever momentum and bound their group has; and the first step is lr * s for each entry."""
    ends = []
    own = [{"momentum": 0.5}] if direction in READ_BY["momentum"] else []
    for options in ({}, *own, {"bound": "sphere"}, {"p_bound": 0.5}):
        param = nn.Parameter(gradient(torch.empty(shape), 1) + 2.0)
        first, size = param.detach().clone(), norm(param) / max(param.numel(), 1) ** 0.5
        optimizer = Fromage([param, _matrix()], lr=0.125, direction=direction, **options)
        run(optimizer, [param], (1,))
        expected = 0.125 * size * torch.ones(shape)
        assert torch.allclose((param.detach() - first).abs(), expected, rtol=1e-5)
        run(optimizer, [param], range(2, 6))
        ends.append(param)
    assert all(same_bits(ends[0], end) for end in ends[1:])


@each_own_direction
def test_vectors_that_start_at_zero_move_by_min_scale_and_cross_zero(direction: str) -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = Fromage([param, _matrix()], lr=0.125, direction=direction)
    param.grad = torch.tensor([1.0, -2.0, 3.0, 1e-3])
    optimizer.step()
    signs = param.grad.sign()
    assert torch.allclose(param.detach(), -0.125 * MIN_SCALE * signs, rtol=1e-5)
    for _ in range(60):
        param.grad = -10 * signs
        optimizer.step()
    assert (param.detach() * signs > 0).all()


@each_pair
def test_the_scale_of_gradients_is_ignored(direction: str, scale: str) -> None:
    """A million times larger or smaller; powers of two, so that only sums may round otherwise."""
    ends = []
    for factor in (1.0, 2.0**20, 2.0**-20):
        params, groups = frame_of(torch.float32, direction, scale)
        optimizer = Fromage(groups, lr=0.05)
        for number in (1, 2, 3):
            for index, param in enumerate(params):
                param.grad = gradient(param, 100 * number + index) * factor
            optimizer.step()
        ends.append(params)
    for end in ends[1:]:
        assert_close(end, ends[0], torch.float32)


def test_entries_without_second_moment_stay() -> None:
    """g^2 below float32's smallest normal number: no epsilon, and no quotient of nothings."""
    param = nn.Parameter(gradient(torch.empty(3, 4), 1, 0.1))
    vector = nn.Parameter(torch.ones(4))
    before = snapshot([param, vector])
    optimizer = Fromage([param, vector], lr=0.1, direction="adam", bound="sphere")
    for number in (1, 2, 3):
        param.grad, vector.grad = gradient(param, number), gradient(vector, number)
        vector.grad[2] = 1e-30
        param.grad.fill_(1e-30)
        optimizer.step()
    assert same_bits(param, before[0]) and float(state_of(optimizer, param)["step"]) == 3
    assert float(vector.detach()[2]) == 1.0 and float(vector.detach()[1]) != 1.0


# --- what comes of the moments ------------------------------------------------------------


def bundles_of(optimizer: Fromage, params: list[nn.Parameter]) -> tuple[Bundle, ...]:
    """The bundles after two steps, whose weights have a third gradient."""
    run(optimizer, params, (1, 2))
    for index, param in enumerate(params):
        param.grad = gradient(param, 300 + index)
    return tuple(Slots(optimizer.param_groups, optimizer.state).taking_part().directed)


def directions_of(bundle: Bundle, learns: bool = True) -> list[Tensor]:
    """Those of its third gradients, of the shapes of its weights; moments take them in before."""
    learn = torch.full((len(bundle.slots),), learns)
    if bundle.method.moments is not None and not bundle.follows_momentum:
        take_in(bundle, learn)
    nothing = torch.zeros(len(bundle.slots))
    verdict = Verdict(Judged(learn, learn), nothing, None, learn, nothing, True)
    (found,) = directions(Portion((bundle,)), {bundle.numbers: verdict})
    made = []
    for slot, own in zip(bundle.slots, found, strict=True):
        if isinstance(own, Tensor):
            made.append(own)
            continue
        made.append(torch.empty(slot.param.shape))
        for view, part in zip(slot.views(0), own, strict=True):
            view.of(made[-1]).copy_(part.view(view.shape))
    return made


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("options", [
    {"direction": "momentum"}, {"direction": "momentum", "nesterov": False, "momentum": 0.5},
    {"direction": "adam", "beta": 0.9}, {"direction": "gradient", "scale": "row"},
    {"direction": "momentum", "momentum_dtype": "bfloat16"},
], ids=str)  # fmt: skip
def test_a_direction_is_made_of_the_moments_as_they_are(
    options: dict[str, Any], maximize: bool
) -> None:
    params = [nn.Parameter(gradient(torch.empty(4, 3), n)) for n in range(3)]
    optimizer = Fromage(params, maximize=maximize, **options)
    (bundle,) = bundles_of(optimizer, params)
    given = [tensor.clone() for param in params for tensor in (param.grad, param.detach())]
    before = snapshot([state_of(optimizer, param).get("momentum", param) for param in params])
    for param, direction, old in zip(params, directions_of(bundle), before, strict=True):
        state, grad = state_of(optimizer, param), param.grad * (-1 if maximize else 1)
        decay = optimizer.param_groups[0]["momentum"] or 0.9
        # What is kept in bfloat16 is rounded after the direction is made of it.
        momentum = decay * old.float() + (1 - decay) * grad
        if "momentum" in state:
            kept = state["momentum"]
            rtol = 2**-7 if kept.dtype is torch.bfloat16 else 1e-6
            torch.testing.assert_close(kept.float(), momentum, rtol=rtol, atol=1e-7)
        if options["direction"] == "gradient":
            expected = grad
        elif options["direction"] == "adam":
            # The count of steps is the judge's to raise, which has no part in this.
            mean_square = state["second_moment"] / (1 - 0.9**2)
            expected = momentum / (1 - decay**2) / mean_square.sqrt()
        else:
            ahead = decay * momentum + (1 - decay) * grad
            expected = momentum if options.get("nesterov") is False else ahead
        torch.testing.assert_close(direction, expected, rtol=1e-5, atol=1e-7)
    now = [tensor for param in params for tensor in (param.grad, param.detach())]
    assert all(map(same_bits, now, given)), "a gradient or a weight was written to"


@pytest.mark.parametrize(("shape", "split"), [
    ((6, 4), {}), ((6, 4), {"split_sizes": 3}), ((6, 4), {"split_sizes": (1, 5)}),
    ((6, 4), {"split_sizes": 2, "split_dim": 1}), ((3, 4, 2), {}), ((6, 4, 2), {"split_sizes": 2}),
], ids=str)  # fmt: skip
def test_a_spectral_direction_is_that_of_each_block(
    shape: tuple[int, ...], split: dict[str, Any]
) -> None:
    scale = "block" if split or len(shape) == 3 else "tensor"
    params = [nn.Parameter(gradient(torch.empty(shape), n)) for n in range(2)]
    optimizer = Fromage(params, direction="spectral", scale=scale, nesterov=False, **split)
    (bundle,) = bundles_of(optimizer, params)
    found = directions_of(bundle)
    options = {"split_dim": None, "split_sizes": None, **split}
    for param, direction in zip(params, found, strict=True):
        momentum = to_numpy(state_of(optimizer, param)["momentum"])
        each = zip(parts(momentum, scale, **options), parts(to_numpy(direction), scale, **options),
                   strict=True)  # fmt: skip
        for block, made in each:
            expected = polar_express(block.reshape(len(block), -1))
            gap = np.linalg.norm(made.reshape(len(made), -1) - expected)
            assert gap <= 3e-5 * np.linalg.norm(expected)


def test_what_has_no_usable_gradient_keeps_its_momentum() -> None:
    params = [nn.Parameter(gradient(torch.empty(4, 3), 1))]
    optimizer = Fromage(params, direction="spectral")
    (bundle,) = bundles_of(optimizer, params)
    kept = state_of(optimizer, params[0])["momentum"].clone()
    directions_of(bundle, learns=False)
    assert same_bits(state_of(optimizer, params[0])["momentum"], kept)


def test_matrices_of_one_shape_lie_one_after_the_other() -> None:
    """Of several weights, and of blocks along columns: a stack is no copy, and nor is its end."""
    params = [nn.Parameter(gradient(torch.empty(4, n), n)) for n in (12, 4, 12)]
    groups = [
        {"params": params[::2], "scale": "block", "split_sizes": 3, "split_dim": 1},
        {"params": params[1:2]},
    ]
    portion = Portion(bundles_of(Fromage(groups, direction="spectral"), params))
    stacks = _stacks(portion.matrices)
    every = [each for own in stacks.values() for each in own]
    assert [tuple(each.shape) for each in every] == [(3, 4, 4), (3, 4, 4), (1, 4, 4)]
    assert joined(every).data_ptr() == every[0].data_ptr()


def test_matrices_are_named_in_the_order_of_their_numbers() -> None:
    """Whatever bundles they are in: ranks share the work by that order."""
    ways = [{"seed": n % 2} for n in range(5)]
    params = [nn.Parameter(gradient(torch.empty(3 + n, 3), n)) for n in range(5)]
    groups = [{"params": [p], **way} for p, way in zip(params, ways, strict=True)]
    bundles = bundles_of(Fromage(groups, direction="spectral"), params)
    assert [[slot.number for slot in each.slots] for each in bundles] == [[0, 2, 4], [1, 3]]
    assert [matrix.slot.number for matrix in Portion(bundles).matrices] == [0, 1, 2, 3, 4]
