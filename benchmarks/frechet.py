"""Fréchet distance of pictures: between Gaussians that are fitted to a classifier's features.

    d^2 = |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))

m, S: mean and covariance. From "GANs Trained by a Two Time-Scale Update Rule Converge to a Local
Nash Equilibrium" (Heusel et al., 2017; arXiv 1706.08500), where the classifier is Inception. Here a
small one does for small pictures: it is trained on the same set first, and its distances compare
with one another, not with those that papers report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from image_data import Split
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import set_seed

# From batches of generated pictures, [pictures, colors, side, side], to their distance.
PictureDistance = Callable[[Iterable[Tensor]], float]

# The classifier is the same for every run, whatever its seed.
CLASSIFIER_SEED = 0
CLASSIFIER_STEPS, CLASSIFIER_BATCH, CLASSIFIER_LR = 300, 64, 2e-3
FEATURES = 64


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution.

    Attributes:
        mean: float64 [features].
        covariance: float64 [features, features].
    """

    mean: Tensor
    covariance: Tensor


def gaussian_of(features: Tensor) -> Gaussian:
    """The Gaussian of these features' mean and unbiased covariance.

    Args:
        features: [samples, features], two samples at least.

    Raises:
        ValueError: another shape, or a feature that is not finite.
    """
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(
            f"features are of shape {list(features.shape)}; give [samples, features], with two "
            "samples at least"
        )
    _check_finite("features", features)
    wide = features.double()
    return Gaussian(wide.mean(0), torch.cov(wide.T).view(wide.size(1), wide.size(1)))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The squared Fréchet distance, which is what papers call FID; 0 for equal Gaussians.

    Raises:
        ValueError: they are of different sizes, or hold a number that is not finite.
    """
    for gaussian in (first, second):
        size = gaussian.mean.numel()
        if gaussian.mean.shape != (size,) or gaussian.covariance.shape != (size, size):
            raise ValueError(
                f"a mean of shape {list(gaussian.mean.shape)} has a covariance of shape "
                f"{list(gaussian.covariance.shape)}; they are [features] and [features, features]"
            )
        _check_finite("a mean", gaussian.mean)
        _check_finite("a covariance", gaussian.covariance)
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"the Gaussians have {len(first.mean)} and {len(second.mean)} features; give as many"
        )
    (mean_1, cov_1), (mean_2, cov_2) = (
        (gaussian.mean.double(), gaussian.covariance.double()) for gaussian in (first, second)
    )
    # S1 S2 is not symmetric, but has the eigenvalues of R S2 R with R = S1^(1/2), which is.
    root = _root(cov_1)
    shared = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0).sqrt().sum()
    spread = cov_1.trace() + cov_2.trace() - 2 * shared
    # Of equal Gaussians rounding leaves a trifle, which may be below zero.
    return max(0.0, float((mean_1 - mean_2).square().sum() + spread))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    # Features that are always zero have eigenvalues of zero, which rounding makes negative.
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _check_finite(what: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(f"{what} of shape {list(values.shape)} holds NaN or infinity")


def classifier_distance(data: Split) -> PictureDistance:
    """Distances to all pictures of a set by a small classifier, which is trained on it first.

    Sets the global seed. The distance of pictures that are not finite is NaN.
    """
    classifier = _trained_classifier(data)

    @torch.no_grad()
    def features(batches: Iterable[Tensor]) -> Tensor:
        # Without the last layer.
        return torch.cat([classifier[:-1](pictures.cpu()) for pictures in batches])

    real = gaussian_of(features(all_pictures(data)))

    def distance(batches: Iterable[Tensor]) -> float:
        found = features(batches)
        return frechet_distance(gaussian_of(found), real) if found.isfinite().all() else math.nan

    return distance


def _trained_classifier(data: Split) -> nn.Sequential:
    set_seed(CLASSIFIER_SEED)
    colors, side = data.train.shape[0], data.train.shape[1]
    classifier = nn.Sequential(
        *(nn.Conv2d(colors, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, FEATURES), nn.ReLU()),
        nn.Linear(FEATURES, data.classes),
    )
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=CLASSIFIER_LR)
    batches = data.train.batches(CLASSIFIER_BATCH, CLASSIFIER_STEPS, CLASSIFIER_SEED)
    for pictures, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(classifier(pictures), labels).backward()
        optimizer.step()
    return classifier.eval()


def inception_distance(data: Split, values: tuple[float, float], device: str) -> PictureDistance:
    """Distances to all pictures of a set by Inception's features: the FID of papers.

    Args:
        data: pictures of three colors.
        values: of a black and of a white pixel.

    Raises:
        SystemExit: torchmetrics or its Inception is not installed.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        # What it knows of the real pictures outlives a reset.
        metric = FrechetInceptionDistance(normalize=True, reset_real_features=False).to(device)
    except ImportError as error:
        raise SystemExit(
            f"the Fréchet Inception distance needs torchmetrics ({error}): "
            "pip install 'hf_relopt[gan]'"
        ) from error
    low, high = values

    def update(batches: Iterable[Tensor], real: bool) -> None:
        for pictures in batches:
            unit = (pictures.to(device) - low) / (high - low)
            metric.update(unit.clamp(0, 1), real=real)

    update(all_pictures(data), real=True)

    def distance(batches: Iterable[Tensor]) -> float:
        metric.reset()
        update(batches, real=False)
        return float(metric.compute())

    return distance


def all_pictures(data: Split) -> Iterator[Tensor]:
    """Those to train on and those to measure on, in batches."""
    for part in (data.train, data.valid):
        for pictures, _ in part.in_order():
            yield pictures
