"""Backends are ways to run one step: the loop, which is the reference, foreach and compiled.

Loop and foreach end at the same bits in every case and dtype, so that what else is said of one
holds for the other; compiled arithmetic rounds otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from hf_relopt.backends import backend, foreach
from hf_relopt.backends.backend import BACKENDS, automatic, backend_of
from tests.cases import BY_NAME, CASES_AND_DTYPES, DEFAULTS, Case
from tests.frames import BOUNDS, each_pair, frame_of
from tests.tensors import (
    ULP,
    Optimizer,
    assert_close,
    gradient,
    run,
    same_bits,
    start,
    state_of,
    weights,
)

# A compilation costs a second or more: few settings, few dtypes.
COMPILED = [BY_NAME[name] for name in ("fromage", "fromage-p_bound-1", "madam", "fromage-momentum")]


def _name(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


def test_auto_is_one_of_them_and_the_option_names_the_others() -> None:
    here = torch.device("cpu")
    assert backend_of("auto", here) is BACKENDS["foreach"]
    assert automatic(torch.device("mps"), torch.float32) == "foreach"
    assert all(backend_of(name, here) is each for name, each in BACKENDS.items())
    with pytest.raises(KeyError):
        backend_of("fastest", here)


def _mixed(dtype: torch.dtype) -> list[nn.Parameter]:
    """Small tensors that are laid end to end, one that is too large for it, vectors, a scalar."""
    shapes = ((190, 180), (6, 2, 3), (4,), (), (4, 0))
    others = [gradient(torch.empty(shape, dtype=dtype), 10 + len(shape), 0.1) for shape in shapes]
    assert others[0].numel() > foreach.small_size(torch.device("cpu"))
    return [*weights(dtype), *map(nn.Parameter, others)]


def _eventful_step(optimizer: Optimizer, params: list[nn.Parameter], number: int) -> None:
    """Another tensor in each step has no gradient, one of zeros, or one that is not finite."""
    for place, param in enumerate(params):
        param.grad = gradient(param, 100 * number + place)
        if param.numel() and place == number % 4:
            param.grad.view(-1)[0] = float("nan")
        if place == (number + 1) % 4:
            param.grad.zero_()
        if place == (number + 2) % 4:
            param.grad = None
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if number == 4 else 2.0**-number
    optimizer.step()


def _assert_same_ends(
    one: tuple[list[nn.Parameter], Optimizer], two: tuple[list[nn.Parameter], Optimizer]
) -> None:
    (params, optimizer), (others, other) = one, two
    for param, twin in zip(params, others, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert same_bits(param, twin)
        assert mine.keys() == theirs.keys() != set()
        assert all(same_bits(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(("case", "dtype"), CASES_AND_DTYPES, ids=_name)
def test_foreach_ends_at_the_bits_of_the_loop(case: Case, dtype: torch.dtype) -> None:
    """Weights and all state, after steps in which everything happens that may."""
    ends = []
    for name in ("loop", "foreach"):
        params = _mixed(dtype)
        if not case.takes_any_shape:
            params = [param for param in params if param.dim() != 2 or len(param) % 2 == 0]
        optimizer = case.make(params, backend=name)
        for number in range(1, 8):
            _eventful_step(optimizer, params, number)
        ends.append((params, optimizer))
    _assert_same_ends(*ends)
    params, optimizer = ends[0]
    counts = [float(state_of(optimizer, params[0])[name]) for name in ("step", "skipped")]
    assert counts == [2, 1], "not all that may happen has happened"


@pytest.mark.parametrize(
    ("bound", "dtype"),
    [*[(bound, torch.float32) for bound in BOUNDS], ("p_bound", torch.bfloat16)],
    ids=_name,
)
@each_pair
def test_foreach_ends_at_the_bits_of_the_loop_in_every_combination(
    direction: str, scale: str, bound: str, dtype: torch.dtype
) -> None:
    """Matrices with rows of zeros, experts and vectors under each direction, scale and bound."""
    ends = []
    for name in ("loop", "foreach"):
        params, groups = frame_of(dtype, direction, scale, **BOUNDS[bound])
        optimizer = Fromage(groups, backend=name, seed=3)
        for number in range(1, 6):
            _eventful_step(optimizer, params, number)
        ends.append((params, optimizer))
    _assert_same_ends(*ends)


@pytest.mark.parametrize("case", COMPILED, ids=_name)
def test_compiled_agrees_with_the_loop(case: Case) -> None:
    params, optimizer = start(case, "loop", torch.float32, lr=0.0625)
    others, other = start(case, "compiled", torch.float32, lr=0.0625)
    for number in range(1, 6):
        run(optimizer, params, (number,))
        run(other, others, (number,))
        assert_close(others, params, torch.float32)


@pytest.mark.parametrize("case", DEFAULTS, ids=_name)
def test_compiled_rounds_like_the_loop(case: Case) -> None:
    """Other noise would change a third of the entries; float32 rounding changes next to none."""
    ends = []
    for name in ("loop", "compiled"):
        params = [nn.Parameter(gradient(torch.empty(64, 32, dtype=torch.bfloat16), 3, 0.1))]
        run(case.make(params, lr=0.01, backend=name), params, (1,))
        ends.append(params[0].detach().double())
    assert float((ends[0] != ends[1]).double().mean()) < 0.01
    assert bool(((ends[0] - ends[1]).abs() <= ULP[torch.bfloat16] * ends[0].abs() * 1.01).all())


@pytest.mark.parametrize("name", ["loop", "foreach"])
def test_the_option_reaches_every_way_to_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments, rows, blocks and vectors go through the backend that is named, and no other."""
    used: list[str] = []

    def watched(each: str) -> backend.Backend:
        own = BACKENDS[each]

        def update(*given):  # type: ignore[no-untyped-def]
            used.append(each)
            own.update(*given)

        return replace(own, update=update)

    monkeypatch.setattr(backend, "BACKENDS", {each: watched(each) for each in BACKENDS})
    for case in (BY_NAME["fromage"], BY_NAME["fromage-momentum-row"], BY_NAME["fromage-block"]):
        params = [param for param in _mixed(torch.float32) if param.dim() != 2 or len(param) == 4]
        run(case.make(params, backend=name), params, (1,))
    assert set(used) == {name} and len(used) > 3
