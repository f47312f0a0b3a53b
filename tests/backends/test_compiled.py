"""Large and small tensors of one batch take different ways and end at the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.backends import compiled, sums

SHAPES = [(3,), (200, 100), (), (5, 7), (180, 120), (0,)]


@pytest.mark.parametrize("what", ["grad", "norms", "cosine"])
def test_sums_come_back_in_the_order_of_the_tensors(what: str, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(compiled, "_SMALLEST", 2**14)
    noise = torch.Generator().manual_seed(1)
    params, grads = ([torch.randn(s, generator=noise) for s in SHAPES] for _ in range(2))
    found = compiled.local_sums(params, grads, what)
    torch.testing.assert_close(found, sums.local_sums(params, grads, what), rtol=1e-12, atol=0)


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
