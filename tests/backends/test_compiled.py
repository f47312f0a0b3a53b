"""Large and small tensors of one batch take different ways and end at the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.backends import compiled, loop, sums
from hf_relopt.backends.part import Part
from tests.batches import batch_of, view_of

SHAPES = [(3,), (200, 100), (), (5, 7), (180, 120), (0,)]


@pytest.mark.parametrize("what", ["grad", "norms", "cosine"])
def test_sums_come_back_in_the_order_of_the_tensors(what: str, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(compiled, "_SMALLEST", 2**14)
    noise = torch.Generator().manual_seed(1)
    parts = [
        Part(view_of(0, shape), *(torch.randn(shape, generator=noise) for _ in "wg"))
        for shape in SHAPES
    ]
    found = compiled.sums(parts, what)
    torch.testing.assert_close(found, sums.sums(parts, what), rtol=1e-12, atol=0)


@pytest.mark.parametrize("noisy", [False, True])
def test_rows_step_as_the_loop_does(noisy: bool, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(compiled, "_SMALLEST", 10)
    shapes = [(6, 5), (4, 3), (6, 5), (40, 7), (3,), (30, 20)]
    one, other = (batch_of(torch.bfloat16, shapes, noisy, (0, 3, 5)) for _ in "ab")
    loop.update(*one.given())
    compiled.update(*other.given())
    for ours, theirs in zip(one.weights(), other.weights(), strict=True):
        # A rounding of the arithmetic may move a rounding of the weight.
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=1e-6)
        assert float((ours != theirs).double().mean()) < 0.02


@pytest.mark.parametrize("build", [Fromage, Madam])
def test_mixed_sizes_end_where_the_loop_does(build, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(compiled, "_SMALLEST", 2**14)
    ends = []
    for backend in ("loop", "compiled"):
        noise = torch.Generator().manual_seed(2)
        params = [nn.Parameter(torch.randn(s, generator=noise)) for s in SHAPES]
        optimizer = build(params, lr=0.1, backend=backend)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(param.shape, generator=noise)
            optimizer.step()
        ends.append([param.detach() for param in params])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
