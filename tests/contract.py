"""The laws every optimizer obeys, in every setting, backend and dtype.

Each law is a function `law_xxx(case, backend, dtype)` that fails with an AssertionError. The
tensors are tiny and all of one shape, so that the compiled backend compiles once per dtype.
Here: what a step does when it should do nothing, state, copies and telemetry. The laws of
torch's own interface are in contract_torch.py.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_relopt.rules.rule import FACTORS, NEURONS
from hf_relopt.step.state import OF_SLICES
from tests.cases import Case
from tests.tensors import (
    ULP,
    anchors_of,
    norm,
    run,
    same_bits,
    set_gradients,
    snapshot,
    start,
    state_of,
)

Law = Callable[[Case, str, torch.dtype], None]

# --- what a step does when it should do nothing -------------------------------------------


def law_none_gradient_is_left_alone(case: Case, backend: str, dtype: torch.dtype) -> None:
    params, optimizer = start(case, backend, dtype)
    before = snapshot(params)
    set_gradients(params, 1)
    params[1].grad = None
    optimizer.step()
    assert same_bits(params[1], before[1])
    assert not state_of(optimizer, params[1])
    assert not same_bits(params[0], before[0])


def law_zero_gradient_changes_no_bit(case: Case, backend: str, dtype: torch.dtype) -> None:
    params, optimizer = start(case, backend, dtype)
    before = snapshot(params)
    for sign in (0.0, -0.0, 0.0):
        for param in params:
            param.grad = torch.full_like(param, sign)
        optimizer.step()
    for param, old in zip(params, before, strict=True):
        state = state_of(optimizer, param)
        assert same_bits(param, old)
        assert float(state["step"]) == 0 and float(state["skipped"]) == 0
        assert all(not state[name].any() for name in case.moments)
        if case.anchored:
            assert state["anchor_norm"].tolist() == pytest.approx(case.anchors(old), rel=1e-6)


def law_zero_gradient_later_changes_nothing(case: Case, backend: str, dtype: torch.dtype) -> None:
    params, optimizer = start(case, backend, dtype)
    run(optimizer, params, (1, 2))
    before = [snapshot([param, *state_of(optimizer, param).values()]) for param in params]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param, old in zip(params, before, strict=True):
        now = [param, *state_of(optimizer, param).values()]
        assert all(same_bits(a, b) for a, b in zip(now, old, strict=True))


def law_anchor_of_a_zero_gradient_is_kept(case: Case, backend: str, dtype: torch.dtype) -> None:
    if not case.anchored:
        return
    params, optimizer = start(case, backend, dtype)
    first = case.anchors(params[0])
    params[0].grad = torch.zeros_like(params[0])
    optimizer.step()
    with torch.no_grad():
        params[0].mul_(2.0)
    run(optimizer, params, (1,))
    assert anchors_of(optimizer, params[0]) == pytest.approx(first, rel=1e-6)


def law_zero_lr_changes_no_bit_but_counts(case: Case, backend: str, dtype: torch.dtype) -> None:
    params, optimizer = start(case, backend, dtype, lr=0.0)
    before = snapshot(params)
    run(optimizer, params, (1, 2))
    for param, old in zip(params, before, strict=True):
        state = state_of(optimizer, param)
        assert same_bits(param, old)
        assert float(state["step"]) == 2 and float(state["skipped"]) == 0
        assert all(state[name].any() for name in case.moments)
        if case.anchored:
            assert state["anchor_norm"].tolist() == pytest.approx(case.anchors(old), rel=1e-6)


def law_zero_tensor_lr_changes_no_bit(case: Case, backend: str, dtype: torch.dtype) -> None:
    params, optimizer = start(case, backend, dtype, lr=torch.tensor(0.0))
    before = snapshot(params)
    run(optimizer, params, (1,))
    assert all(same_bits(a, b) for a, b in zip(params, before, strict=True))


def law_non_finite_gradient_is_skipped(case: Case, backend: str, dtype: torch.dtype) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        params, optimizer = start(case, backend, dtype)
        run(optimizer, params, (1,))
        before = [snapshot([param, *state_of(optimizer, param).values()]) for param in params]
        set_gradients(params, 2)
        params[0].grad[1, 1] = bad
        params[2].grad[:] = bad
        optimizer.step()
        for index, param in enumerate(params):
            state = dict(state_of(optimizer, param))
            now, old = [param, *state.values()], before[index]
            names = ["weight", *state]
            kept = {n for n, a, b in zip(names, now, old, strict=True) if same_bits(a, b)}
            if index == 1:
                assert float(state["skipped"]) == 0
                assert not kept & {"weight", "step", *case.moments}
            else:
                assert float(state["skipped"]) == 1
                assert kept == set(names) - {"skipped"}


def law_gradient_beyond_the_numbers_is_skipped(
    case: Case, backend: str, dtype: torch.dtype
) -> None:
    """Each entry is a float32, and the norm is none: what is divided by it would vanish."""
    if dtype is torch.float64:
        return
    params, optimizer = start(case, backend, dtype)
    run(optimizer, params, (1,))
    before = [snapshot([param, *state_of(optimizer, param).values()]) for param in params]
    for param in params:
        param.grad = torch.full_like(param, min(3e38, torch.finfo(dtype).max))
    optimizer.step()
    for param, old in zip(params, before, strict=True):
        state = state_of(optimizer, param)
        if torch.linalg.vector_norm(param.grad.double()) < torch.finfo(torch.float32).max:
            continue
        assert float(state["skipped"]) == 1
        now = dict(zip(("weight", *state), [param, *state.values()], strict=True))
        changed = {n for (n, a), b in zip(now.items(), old, strict=True) if not same_bits(a, b)}
        assert changed == {"skipped"}


def law_non_finite_gradient_makes_no_anchor(case: Case, backend: str, dtype: torch.dtype) -> None:
    if not case.anchored:
        return
    params, optimizer = start(case, backend, dtype)
    set_gradients(params, 1)
    for param in params:
        param.grad[0, 0] = float("nan")
    optimizer.step()
    optimizer.step()
    with torch.no_grad():
        for param in params:
            param.add_(1.0)  # no weight is the same afterwards, none is zero any more
    before = snapshot(params)
    run(optimizer, params, (2,))
    for param, old in zip(params, before, strict=True):
        state = state_of(optimizer, param)
        assert state["anchor_norm"].tolist() == pytest.approx(case.anchors(old), rel=1e-6)
        assert float(state["skipped"]) == 2 and float(state["step"]) == 1
        assert not same_bits(param, old)


def law_rows_without_gradient_are_left_alone(case: Case, backend: str, dtype: torch.dtype) -> None:
    if case.options.get("scale") != "row":
        return
    params, optimizer = start(case, backend, dtype)
    before = snapshot(params)
    for number in (1, 2, 3):
        set_gradients(params, number)
        for param in params:
            param.grad[:2] = -0.0 if number == 2 else 0.0
        optimizer.step()
    for param, old in zip(params, before, strict=True):
        assert same_bits(param[:2], old[:2])
        assert (param[2:] != old[2:]).any(dim=1).all()


def law_gradients_are_never_changed(case: Case, backend: str, dtype: torch.dtype) -> None:
    params, optimizer = start(case, backend, dtype)
    for number in (1, 2):
        set_gradients(params, number)
        given, copies = [p.grad for p in params], snapshot([p.grad for p in params])
        optimizer.step()
        for param, grad, old in zip(params, given, copies, strict=True):
            assert param.grad is grad and same_bits(grad, old)


def law_measuring_changes_nothing(case: Case, backend: str, dtype: torch.dtype) -> None:
    """Telemetry tells what the step did, and the step is the same to the bit."""
    params, optimizer = start(case, backend, dtype)
    others, other = start(case, backend, dtype)
    run(optimizer, params, (1,))
    run(other, others, (1,))
    before = snapshot(params)
    optimizer.measure_next_step()
    for each, tensors in ((optimizer, params), (other, others)):
        set_gradients(tensors, 2)
        tensors[1].grad[0, 0] = float("inf")
        each.step()
    figures = optimizer.take_measurement()
    assert optimizer.take_measurement() is None
    assert all(same_bits(a, b) for a, b in zip(params, others, strict=True))
    old, new = (torch.cat([t.detach().double().flatten() for t in ts]) for ts in (before, params))
    assert figures["relative_update"] == pytest.approx(
        norm(new - old) / norm(old), rel=max(1e-4, ULP[dtype])
    )
    assert figures["changed_entries"] == pytest.approx(float((new != old).double().mean()))
    assert figures["skipped_tensors"] == 1
    assert 0 <= figures["at_bound"] <= 1


# --- state --------------------------------------------------------------------------------


def law_state_is_frozen_small_and_lazy(case: Case, backend: str, dtype: torch.dtype) -> None:
    params, optimizer = start(case, backend, dtype)
    assert not optimizer.state, "no state before the first step"
    run(optimizer, params, (1,))
    for param in params:
        state = state_of(optimizer, param)
        assert set(state) == case.state
        for name, value in state.items():
            assert value.dtype == case.state_dtype(name)
            # The anchor's one dimension is what distributed checkpoints need.
            small = (len(case.anchors(param)),) if name in OF_SLICES else ()
            if name in (*FACTORS, NEURONS):  # of rows, and of columns of two blocks
                assert value.dim() == param.dim() and value.numel() <= 2 * max(param.shape)
                continue
            assert value.shape == (param.shape if name in case.moments else small)


def law_anchor_is_made_once(case: Case, backend: str, dtype: torch.dtype) -> None:
    if not case.anchored:
        return
    params, optimizer = start(case, backend, dtype)
    first = [case.anchors(param) for param in params]
    run(optimizer, params, (1,))
    anchors = snapshot(state_of(optimizer, param)["anchor_norm"] for param in params)
    for anchor, norms in zip(anchors, first, strict=True):
        assert anchor.tolist() == pytest.approx(norms, rel=1e-6)
    run(optimizer, params, (2, 3))
    assert all(
        same_bits(state_of(optimizer, param)["anchor_norm"], anchor)
        for param, anchor in zip(params, anchors, strict=True)
    )


def law_copies_continue_bit_equal(case: Case, backend: str, dtype: torch.dtype) -> None:
    def pickled(pair: Any) -> Any:
        return pickle.loads(pickle.dumps(pair))

    for clone in (copy.deepcopy, pickled):
        params, optimizer = start(case, backend, dtype)
        run(optimizer, params, (1, 2))
        other_params, other = clone((params, optimizer))
        assert other.state[torch.zeros(1)] == {}, "a defaultdict, as torch's optimizers have it"
        run(optimizer, params, (3, 4))
        run(other, other_params, (3, 4))
        for param, twin in zip(params, other_params, strict=True):
            assert param is not twin and same_bits(param, twin)


LAWS: tuple[Law, ...] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("law_")
)
