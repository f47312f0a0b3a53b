"""The orthogonal factor: four polynomials against a singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_relopt.rules.orthogonalize import orthogonalize
from tests.oracles.frame import POLYNOMIALS, exact_factor, polar_express
from tests.tensors import same_bits, to_numpy

# Where singular values between FROM and 1, in units of |M M^T|^(1/2), end.
FROM, LEAST, LARGEST = 4e-3, 0.84, 1.13
SHAPES = ((8, 8), (5, 12), (12, 5), (1, 6), (6, 1), (1, 1), (48, 32))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def _matrix(shape: tuple[int, int], values: np.ndarray, seed: int = 0) -> torch.Tensor:
    """A matrix of this shape with these singular values and random singular vectors."""
    gen = np.random.default_rng(seed)
    left, _ = np.linalg.qr(gen.normal(size=(shape[0], len(values))))
    right, _ = np.linalg.qr(gen.normal(size=(shape[1], len(values))))
    return torch.tensor((left * values) @ right.T, dtype=torch.float32)


def _spectrum(kind: str, rank: int) -> np.ndarray:
    """Singular values down to FROM |M M^T|^(1/2), the least that is promised."""
    if kind == "flat":
        return np.ones(rank)
    values = np.full(rank, FROM) if kind == "one is large" else np.geomspace(FROM, 1.0, rank)
    values[-1] = 1.0
    for _ in range(50):  # the floor hangs on the norm, and the norm a little on the floor
        values = np.maximum(values, 1.001 * FROM * np.sum(values**4) ** 0.25)
    return values


def _values(matrices: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(to_numpy(matrices), compute_uv=False)


@pytest.mark.parametrize("kind", ["flat", "geometric", "one is large"])
@each_shape
def test_singular_values_end_near_one(shape: tuple[int, int], kind: str) -> None:
    matrix = _matrix(shape, _spectrum(kind, min(shape)))
    found = orthogonalize(matrix)
    assert found.shape == shape
    values = _values(found)
    assert values.min() >= LEAST and values.max() <= LARGEST, values


@each_shape
def test_singular_vectors_are_those_of_the_decomposition(shape: tuple[int, int]) -> None:
    """U^T M V is diagonal: what came out is the factor but for its singular values."""
    matrix = _matrix(shape, np.geomspace(0.1, 1.0, min(shape)))
    left, _, right = np.linalg.svd(to_numpy(matrix), full_matrices=False)
    turned = left.T @ to_numpy(orthogonalize(matrix)) @ right.T
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-4
    assert np.diag(turned).min() >= LEAST
    # A singular value that is off by 16 % turns the whole by less than 8 %.
    found, exact = to_numpy(orthogonalize(matrix)), exact_factor(to_numpy(matrix))
    cosine = np.sum(found * exact) / np.linalg.norm(found) / np.linalg.norm(exact)
    assert cosine > 0.99


def test_each_polynomial_is_the_best_for_what_the_one_before_leaves() -> None:
    """The best one's error has its largest size at four places, with signs in turn."""
    least = FROM
    largest = 1.0
    for a, b, c in POLYNOMIALS:
        between = np.sort(np.sqrt(np.roots([5 * c, 3 * b, a])))
        s = np.array([least, *between, largest])
        errors = 1 - (a * s + b * s**3 + c * s**5)
        assert least < between[0] and between[1] < largest
        np.testing.assert_allclose(errors, errors[0] * np.array([1, -1, 1, -1]), rtol=1e-7)
        least, largest = 1 - errors[0], 1 + errors[0]
    # Room for the rounding that the factor 1.01 makes.
    assert least > LEAST and largest < LARGEST


@each_shape
def test_the_steps_are_those_of_the_oracle(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected = polar_express(to_numpy(matrix))
    gap = np.linalg.norm(to_numpy(orthogonalize(matrix)) - expected)
    assert gap <= 3e-5 * np.linalg.norm(expected)


def test_a_transposed_matrix_has_the_transposed_factor() -> None:
    matrix = torch.randn(7, 4)
    found, turned = orthogonalize(matrix), orthogonalize(matrix.t())
    assert torch.allclose(found.t(), turned, atol=1e-6)


@pytest.mark.parametrize("lead", [(3,), (1,)], ids=str)
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (4, 4)], ids=str)
def test_a_batch_is_each_matrix_alone(shape: tuple[int, int], lead: tuple[int, ...]) -> None:
    matrices = torch.randn(*lead, *shape)
    kept = matrices.clone()
    together = orthogonalize(matrices)
    assert together.shape == matrices.shape and same_bits(matrices, kept)
    for place in np.ndindex(*lead):
        alone = orthogonalize(matrices[place])
        assert torch.allclose(together[place], alone, atol=2e-5)


def test_a_zero_matrix_gives_zeros_and_disturbs_no_neighbour() -> None:
    matrices = torch.randn(3, 4, 5)
    matrices[1] = 0.0
    found = orthogonalize(matrices)
    assert (found[1] == 0).all()
    assert torch.allclose(found[[0, 2]], orthogonalize(matrices[[0, 2]]), atol=2e-5)
    for shape in ((4, 4), (1, 3), (3, 1)):
        assert (orthogonalize(torch.zeros(shape)) == 0).all()
        assert (orthogonalize(-torch.zeros(shape)) == 0).all()


def test_a_bad_matrix_spoils_none_beside_it() -> None:
    matrices = torch.randn(3, 4, 5)
    matrices[1, 2, 2] = float("nan")
    found = orthogonalize(matrices)
    assert torch.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)], ids=str)
def test_what_a_deficient_matrix_lacks_stays_small(shape: tuple[int, int], rank: int) -> None:
    found = orthogonalize(_matrix(shape, np.geomspace(0.5, 1.0, rank)))
    assert torch.isfinite(found).all()
    values = _values(found)
    assert values[:rank].min() >= LEAST and values.max() <= LARGEST
    # Rounding noise of 1e-7 is multiplied by 245.
    assert values[rank:].max() < 5e-3


def test_numbers_that_are_hardly_any_have_a_factor_too() -> None:
    """float32 has fewer digits below 1e-38, and none of the products may be of such numbers."""
    matrix = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)) * 1e-40
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.8 and values.max() < 1.2


@pytest.mark.parametrize("power", [-120, -60, 60, 120])
def test_the_size_of_the_matrix_does_not_matter(power: int) -> None:
    """Also where its squares are no float32 numbers."""
    matrix = torch.randn(5, 8)
    found = orthogonalize(matrix * 2.0**power)
    assert torch.allclose(found, orthogonalize(matrix), atol=2e-5)
