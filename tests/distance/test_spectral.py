"""Spectral norms against torch.linalg, on random, real, degenerate and hard matrices."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_relopt.distance.spectral import spectral_norm
from tests.distance.nets import MINILM


def norm_of(matrix: Tensor, rows: int = 37) -> float:
    return spectral_norm(lambda: matrix.split(rows), *matrix.shape)


def flat_spectrum(rows: int, columns: int) -> Tensor:
    """All singular values are 1, so that power iteration has nothing to hold on to."""
    return torch.linalg.qr(torch.randn(rows, columns))[0]


def graded(rows: int, columns: int) -> Tensor:
    """Singular values from 1 down to 1e-12."""
    u, v = flat_spectrum(rows, columns), flat_spectrum(columns, columns)
    return u * torch.logspace(0, -12, columns) @ v.T


@pytest.mark.parametrize(
    "matrix",
    [
        lambda: torch.randn(3, 5),
        lambda: torch.randn(700, 300),
        lambda: torch.randn(300, 700),
        lambda: torch.randn(400, 400) @ torch.randn(400, 400),
        lambda: torch.ones(300, 200),
        lambda: torch.eye(300),
        lambda: flat_spectrum(400, 200),
        lambda: graded(400, 200),
        lambda: 1e18 * torch.randn(300, 200),
        lambda: 1e-18 * torch.randn(300, 200),
        lambda: torch.zeros(300, 200),
    ],
)
def test_it_is_the_largest_singular_value(matrix):
    held = matrix()
    expected = float(torch.linalg.matrix_norm(held.double(), ord=2))
    assert norm_of(held) == pytest.approx(expected, rel=1e-4)


def test_it_is_near_on_real_weights():
    weights = load_file(MINILM / "model.safetensors")
    for name in ("0.attention.self.key.weight", "5.output.dense.weight"):
        matrix = weights[f"encoder.layer.{name}"]
        expected = float(torch.linalg.matrix_norm(matrix.double(), ord=2))
        assert norm_of(matrix) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_an_empty_matrix_has_none(shape):
    assert norm_of(torch.zeros(shape)) == 0
