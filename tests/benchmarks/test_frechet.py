"""The Fréchet distance meets closed forms, refuses what is no Gaussian, and ranks pictures."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch


def rotation(size: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(size, size, generator=random, dtype=torch.float64)
    return torch.linalg.qr(noise).Q


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_gaussians_with_the_same_axes_have_a_closed_form(load) -> None:
    frechet = load("frechet")
    axes = rotation(3)
    wide, narrow = (torch.tensor(values).double() for values in ([9.0, 4.0, 0.0], [1.0, 1.0, 1.0]))
    first = frechet.Gaussian(torch.zeros(3).double(), axes @ wide.diag() @ axes.T)
    second = frechet.Gaussian(torch.tensor([0.0, 3.0, 4.0]).double(), narrow.diag())
    # |m1 - m2|^2, and for each axis the square of the difference of deviations.
    expected = 25 + (3 - 1) ** 2 + (2 - 1) ** 2 + (0 - 1) ** 2
    assert frechet.frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_covariances_that_do_not_commute_meet_the_square_root_of_their_product(load) -> None:
    frechet = load("frechet")
    axes = rotation(4)
    cov_1 = torch.tensor([1.0, 2.0, 3.0, 4.0]).double().diag()
    cov_2 = axes @ torch.tensor([5.0, 0.5, 2.0, 1.0]).double().diag() @ axes.T
    zero = torch.zeros(4).double()
    root = torch.linalg.eigvals(cov_1 @ cov_2).sqrt().sum().real
    found = frechet.frechet_distance(frechet.Gaussian(zero, cov_1), frechet.Gaussian(zero, cov_2))
    expected = (cov_1.trace() + cov_2.trace() - 2 * root).item()
    assert found == pytest.approx(expected, rel=1e-9) and expected > 0.1


def test_it_is_zero_for_equals_and_the_same_both_ways(load, random: torch.Generator) -> None:
    frechet = load("frechet")
    features = torch.randn(50, 6, generator=random)
    # A feature that is always zero, as behind a ReLU, and one that repeats another.
    features[:, 0], features[:, 1] = 0.0, features[:, 2]
    first = frechet.gaussian_of(features)
    second = frechet.gaussian_of(torch.randn(50, 6, generator=random) * 2 + 1)
    assert frechet.frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    there, back = frechet.frechet_distance(first, second), frechet.frechet_distance(second, first)
    assert there == pytest.approx(back, rel=1e-6) and there > 1


def test_a_gaussian_has_the_mean_and_the_covariance_of_its_samples(load) -> None:
    frechet = load("frechet")
    found = frechet.gaussian_of(torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]]))
    assert found.mean.tolist() == [2, 2] and found.mean.dtype == torch.float64
    assert found.covariance.tolist() == [[4, 3], [3, 3]]
    assert frechet.gaussian_of(torch.tensor([[1.0], [3.0]])).covariance.tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.zeros(5), r"shape \[5\]"),
        (torch.zeros(1, 3), "two samples"),
        (torch.tensor([[1.0], [math.nan]]), "NaN"),
        (torch.tensor([[1.0], [math.inf]]), "infinity"),
    ],
)
def test_features_that_make_no_gaussian_are_refused(load, features, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load("frechet").gaussian_of(features)


@pytest.mark.parametrize(
    ("mean", "covariance", "words"),
    [
        (torch.zeros(3), torch.eye(3), "2 and 3 features"),
        (torch.zeros(2), torch.eye(3), r"covariance of shape \[3, 3\]"),
        (torch.zeros(2, 2), torch.eye(2), r"a mean of shape \[2, 2\]"),
        (torch.full((2,), math.nan), torch.eye(2), "a mean .* NaN"),
        (torch.zeros(2), torch.full((2, 2), math.nan), "a covariance .* NaN"),
    ],
)
def test_gaussians_that_do_not_fit_are_refused(load, mean, covariance, words: str) -> None:
    frechet = load("frechet")
    whole = frechet.Gaussian(torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match=words):
        frechet.frechet_distance(whole, frechet.Gaussian(mean, covariance))


def test_a_classifier_tells_real_pictures_from_noise(
    load, monkeypatch: pytest.MonkeyPatch, random: torch.Generator
) -> None:
    frechet = load("frechet")
    monkeypatch.setattr(frechet, "CLASSIFIER_STEPS", 60)
    data = load("image_data").read_pictures("digits", 8, 1)
    distance = frechet.classifier_distance(data)
    valid = [pictures for pictures, _ in data.valid.in_order()]
    noisy = [one + torch.randn(one.shape, generator=random) / 2 for one in valid]
    noise = [torch.randn(360, 1, 8, 8, generator=random)]
    assert distance(frechet.all_pictures(data)) == pytest.approx(0, abs=1e-3)
    assert 0 < 2 * distance(valid) < distance(noisy) < distance(noise)
    assert math.isnan(distance([torch.full((10, 1, 8, 8), math.nan)]))
    assert frechet.classifier_distance(data)(valid) == distance(valid)


class FakeInception:
    """What is used of torchmetrics' class: the distance is that of means of pixels."""

    def __init__(self, normalize: bool, reset_real_features: bool) -> None:
        assert normalize and not reset_real_features
        self.real, self.fake = [], []

    def to(self, device: str) -> FakeInception:
        return self

    def update(self, pictures: torch.Tensor, real: bool) -> None:
        assert pictures.min() >= 0 and pictures.max() <= 1
        (self.real if real else self.fake).append(pictures)

    def reset(self) -> None:
        self.fake = []

    def compute(self) -> torch.Tensor:
        return (torch.cat(self.real).mean() - torch.cat(self.fake).mean()).abs()


def two_pictures(load):
    pictures = torch.tensor([-2.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    part = load("image_data").Pictures(
        pictures.shape[1:], 2, lambda places: (pictures[places], places)
    )
    return load("image_data").Split(part, part, 2)


def test_inception_sees_all_pictures_between_0_and_1(load, monkeypatch) -> None:
    package = SimpleNamespace(FrechetInceptionDistance=FakeInception)
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", package)
    distance = load("frechet").inception_distance(two_pictures(load), (-2.0, 2.0), "cpu")
    assert distance([torch.full((3, 3, 4, 4), 2.0)]) == 0.5
    assert distance([torch.full((3, 3, 4, 4), 0.0)]) == 0.0, "the pictures before are forgotten"


def test_without_torchmetrics_inception_says_what_to_install(load, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(SystemExit, match=r"pip install 'hf_relopt\[gan\]'"):
        load("frechet").inception_distance(two_pictures(load), (-2.0, 2.0), "cpu")
