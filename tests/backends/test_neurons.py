"""Neuron-wise normalisation of many directions: each as if it were alone."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends import matrices as cutting
from hf_relopt.backends.matrices import Matrices
from hf_relopt.backends.neurons import Neurons, even
from tests.backends.one_process import alone
from tests.tensors import gradient

SHAPES = ((6, 4), (4, 6), (6, 4), (5, 5), (4, 4))
OVER = ("columns", "rows", "columns", "columns", "rows")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_is_evened_as_if_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for limit in (None, 1):
        if limit:
            monkeypatch.setattr(cutting, "piece_size", lambda device: 1)
        kept = [
            Neurons(torch.zeros(1, m if over == "columns" else n), over, torch.tensor(True))
            for (m, n), over in zip(SHAPES, OVER, strict=True)
        ]
        for step in range(3):
            given = [
                gradient(torch.empty(1, *shape, dtype=dtype), step * 10 + n)
                for n, shape in enumerate(SHAPES)
            ]
            own = [Matrices(g, g.new_ones(()), g.numel(), *g.shape[1:]) for g in given]
            found = even(own, kept, 0.9, alone)
        assert all(each.sizes.all() and each.sizes.dtype is torch.float32 for each in kept)
        ends.append([*found, *[each.sizes for each in kept]])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0)


def test_nothing_to_do() -> None:
    assert even([], [], 0.9, alone) == []
