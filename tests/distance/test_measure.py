"""One weight in two states: sums over pieces, spectral norms of matrices, filters and experts."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.distance import measure
from hf_relopt.distance.measure import Pair, is_expert, spectral_norms, sums_of
from hf_relopt.distance.weights import of_state_dict
from hf_relopt.rules.distance import pair_sums


def pair(before, after, name="w"):
    return Pair(of_state_dict({name: before}), of_state_dict({name: after}), name, name)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (4, 3, 2, 2), (1, 200), (0, 4)])
@pytest.mark.parametrize("size", [1, 6, 1000])
def test_sums_over_pieces_are_those_of_the_whole(shape, size, monkeypatch):
    monkeypatch.setattr(measure, "PIECE", size)
    monkeypatch.setattr(measure, "CACHED", max(1, size // 3))
    before, after = torch.randn(shape), torch.randn(shape)
    whole = pair_sums(before, after)
    torch.testing.assert_close(sums_of(pair(before, after)), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kept", [10, 10**6])
@pytest.mark.parametrize("shape", [(300, 200), (6, 4, 3, 3), (3, 5)])
def test_spectral_norms_are_those_of_the_flattened_matrix(shape, kept, monkeypatch):
    monkeypatch.setattr(measure, "KEPT", kept)
    before, after = torch.randn(shape), torch.randn(shape)
    expected = [
        float(torch.linalg.matrix_norm(each.flatten(1).double(), ord=2))
        for each in (before, after - before)
    ]
    assert spectral_norms(pair(before, after)) == pytest.approx(expected, rel=1e-5)


def test_spectral_norms_of_float64_have_its_precision():
    before, after = torch.randn(2, 100, 60, dtype=torch.float64)
    expected = [float(torch.linalg.matrix_norm(each, ord=2)) for each in (before, after - before)]
    assert spectral_norms(pair(before, after)) == pytest.approx(expected, rel=1e-12)


def test_a_stack_of_experts_counts_by_its_largest():
    before, after = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    expected = [
        float(torch.linalg.matrix_norm(each.double(), ord=2).max())
        for each in (before, after - before)
    ]
    found = spectral_norms(pair(before, after, "mlp.experts.gate_up_proj"))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("mlp.experts.down_proj", True), ("block.expert_w.weight", True), ("conv1.weight", False),
        ("model.expertise.weight", False),
    ],
)  # fmt: skip
def test_experts_are_told_by_name(name, expert):
    assert is_expert(name) is expert
