"""Norms and cosines against float64 arithmetic, at sizes whose squares are no float32 numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from hf_relopt.backends import stacks, sums
from hf_relopt.backends.part import Part
from hf_relopt.backends.triton import sums as triton_sums
from hf_relopt.step.slot import slot_of
from tests.batches import view_of
from tests.cases import HAS_TRITON
from tests.oracles.frame import parts as slices
from tests.tensors import gradient, to_numpy


def _expected(param: torch.Tensor, grad: torch.Tensor) -> list[float]:
    w, g = param.double().numpy().ravel(), grad.double().numpy().ravel()
    norms = float(np.linalg.norm(g)), float(np.linalg.norm(w))
    product = norms[0] * norms[1]
    return [*norms, float(w @ g) / product if product else 0.0]


def _parts(pairs, counts: dict[int, int] | None = None) -> list[Part]:  # type: ignore[no-untyped-def]
    """Each pair of tensors as one slice, or as its first dimension's."""
    parts, first = [], 0
    for place, (param, grad) in enumerate(pairs):
        count = (counts or {}).get(place, 1)
        parts.append(Part(view_of(first, tuple(param.shape), count), param, grad))
        first += count
    return parts


def _pair(scale: float, shape: tuple[int, ...] = (40, 30)) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(3)
    param = torch.randn(shape, generator=noise)
    return param * scale, (torch.randn(shape, generator=noise) + param) / scale


WAYS = [sums.sums, sums._scaled_sums, *([triton_sums.sums] if HAS_TRITON else [])]


@pytest.mark.parametrize("sums_of", WAYS, ids=["float64", "scaled", "triton"][: len(WAYS)])
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e20])
def test_norms_and_cosine_at_every_scale(sums_of, scale: float) -> None:  # type: ignore[no-untyped-def]
    pairs = [_pair(scale), _pair(1 / scale, (7,))]
    found = sums_of(_parts(pairs), "cosine")
    for row, pair in zip(found.tolist(), pairs, strict=True):
        assert row == pytest.approx(_expected(*pair), rel=2e-6)


@pytest.mark.parametrize("what", ["grad", "norms", "cosine"])
def test_only_what_is_asked_is_summed(what: str) -> None:
    param, grad = _pair(1.0)
    columns = {"grad": 1, "norms": 2, "cosine": 3}[what]
    for sums_of in WAYS:
        row = sums_of(_parts([(param, grad)]), what)[0]
        assert row.tolist() == pytest.approx(_expected(param, grad)[:columns], rel=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 4)])
def test_zero_and_empty_tensors_have_norm_and_cosine_zero(shape: tuple[int, ...]) -> None:
    zero = torch.zeros(shape)
    for sums_of in WAYS:
        assert sums_of(_parts([(zero, zero)]), "cosine").tolist() == [[0.0, 0.0, 0.0]]


def test_layouts_pair_entries_by_index() -> None:
    param, grad = _pair(1.0, (600, 700))
    strided = param.t().contiguous().t()
    assert not strided.is_contiguous()
    found = sums.sums(_parts([(strided, grad)]), "cosine")[0]
    assert found.tolist() == pytest.approx(_expected(param, grad), rel=1e-12)


def test_a_sum_of_millions_keeps_its_digits() -> None:
    # A float32 accumulator is off by 5e-3 here.
    ones = torch.full((2**22 + 3,), 0.1)
    exact = (ones.numel() * float(ones[0].double()) ** 2) ** 0.5
    assert float(sums.sums(_parts([(ones, ones)]), "grad")) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("limits", [None, 10, 100])
@pytest.mark.parametrize("what", ["grad", "norms", "cosine"])
def test_every_slice_has_its_own_sums_however_they_are_grouped(
    what: str, limits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the slices; with limits, a CPU plays an accelerator or has small caches."""
    sums._plan.cache_clear()
    if limits is not None:
        for name in ("_SHORT", "_MATRIX", "_CACHED"):
            monkeypatch.setattr(sums, name, limits)
        monkeypatch.setattr(stacks, "LARGEST", limits)
        monkeypatch.setattr(sums, "piece_size", lambda device: limits)
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, 5), (4, 3), (6, 5), (2, 2, 3), (), (0,), (40, 40), (9, 5), (5,)]
    counts = {0: 6, 3: 2, 6: 40, 7: 9}
    pairs = [[torch.randn(s, generator=generator) for _ in "wg"] for s in shapes]
    # Columns cut from a larger tensor, as the blocks of a fused projection are.
    pairs[2][0] = torch.randn(6, 15, generator=generator)[:, 5:10]
    found = sums.sums(_parts(pairs, counts), what)
    expected = [
        _expected(w, g)[: found.size(1)]
        for place, (param, grad) in enumerate(pairs)
        for w, g in (zip(param, grad, strict=True) if place in counts else [(param, grad)])
    ]
    sums._plan.cache_clear()
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("limits", [None, 5])
@pytest.mark.parametrize("what", ["grad", "norms", "cosine"])
@pytest.mark.parametrize(("shape", "options"), [
    ((6, 4), {"direction": "momentum"}),
    ((6, 4), {"scale": "row"}),
    ((6, 4), {"scale": "block", "split_sizes": 3}),
    ((6, 4), {"scale": "block", "split_sizes": 2, "split_dim": 1}),
    ((6, 4), {"scale": "block", "split_sizes": 1}),
    ((6, 4), {"scale": "block", "split_sizes": (1, 5)}),
    ((6, 4), {"scale": "block", "split_sizes": (1, 2, 1), "split_dim": 1}),
    ((3, 4, 2), {"scale": "block"}),
    ((6, 4, 2), {"scale": "block", "split_sizes": (2, 4)}),
], ids=str)  # fmt: skip
def test_slices_of_every_kind_of_view_are_summed(
    shape: tuple[int, ...],
    options: dict[str, Any],
    what: str,
    limits: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two weights with the views that a step has of them, of slices and of the whole."""
    sums._plan.cache_clear()
    if limits is not None:
        for name in ("_SHORT", "_MATRIX", "_CACHED"):
            monkeypatch.setattr(sums, name, limits)
        monkeypatch.setattr(sums, "piece_size", lambda device: limits)
    params = [nn.Parameter(gradient(torch.empty(shape), n)) for n in range(2)]
    grads = [gradient(torch.empty(shape), 10 + n) for n in range(2)]
    group = Fromage(params, **options).param_groups[0]
    parts, expected, first = [], [], 0
    for number, (param, grad) in enumerate(zip(params, grads, strict=True)):
        slot = slot_of(number, param, group, {})
        for view in slot.views(first):
            parts.append(Part(view, view.of(param.detach()), view.of(grad)))
        first += slot.slices.count
        split = (group["split_dim"], group["split_sizes"])
        each = zip(*(slices(to_numpy(t), group["scale"], *split) for t in (param, grad)),
                   strict=True)  # fmt: skip
        expected += [_expected(torch.tensor(w), torch.tensor(g)) for w, g in each]
    found = sums.sums(parts, what)
    sums._plan.cache_clear()
    assert found.shape == (first, {"grad": 1, "norms": 2, "cosine": 3}[what])
    wanted = torch.tensor(expected, dtype=torch.float64)[:, : found.size(1)]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
