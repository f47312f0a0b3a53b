"""The walk: every layer makes the relative step, and what is measured is what it is called."""

from __future__ import annotations

import copy
from itertools import pairwise

import curvature_walk
import pytest
import torch
from curvature_networks import NetworkSettings, Perceptron, trained
from curvature_walk import cell_key, measured_cell, moved, output_bound, relative_steps
from digit_images import read_images

from hf_relopt import network_distance

PICTURES = 64


@pytest.fixture(scope="module")
def images():
    return read_images("digits", 4)


def settings(**changed):
    words = {"depth": 4, "residual": False, "steps": 5, "lr": 0.01, "batch": 16, "seed": 0}
    return NetworkSettings(**{**words, **changed})


def test_the_relative_steps_are_even_on_a_logarithmic_scale_with_all_powers_of_ten():
    assert relative_steps(1) == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    for per_decade in (2, 3, 4, 7, 10):
        steps = relative_steps(per_decade)
        assert len(steps) == 4 * per_decade + 1 and set(relative_steps(1)) <= set(steps)
        ratios = [b / a for a, b in pairwise(steps)]
        assert ratios == pytest.approx([10 ** (1 / per_decade)] * len(ratios), rel=1e-4)


def test_every_layer_makes_the_same_relative_step_against_its_gradient(images):
    network = trained(settings(), images).double()
    x, labels = images.pixels[:PICTURES].double(), images.labels[:PICTURES]
    grads = torch.autograd.grad(network(x, labels).loss, list(network.parameters()))
    before = copy.deepcopy(network.state_dict())
    after = moved(network, grads, 0.03)
    distance = network_distance(network, after)
    assert [layer.relative_update for layer in distance.layers] == pytest.approx([0.03] * 4)
    for weight, other, grad in zip(network.parameters(), after.parameters(), grads, strict=True):
        cosine = torch.cosine_similarity((weight - other).flatten(), grad.flatten(), dim=0)
        assert cosine.item() == pytest.approx(1)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("residual", [False, True])
def test_a_cell_holds_what_its_names_say(residual, images):
    steps = [1e-5, 2e-5, 1e-2, 1.0]
    cell = measured_cell(settings(residual=residual), images, PICTURES, steps)
    network = trained(settings(residual=residual), images).double()
    x, labels = images.pixels[:PICTURES].double(), images.labels[:PICTURES]
    answer = network(x, labels)
    assert cell["loss"] == pytest.approx(answer.loss.item(), rel=1e-5)
    right = (answer.logits.argmax(1) == labels).double().mean().item()
    assert cell["accuracy"] == pytest.approx(right, rel=1e-5)
    points = cell["points"]
    assert [point["relative_step"] for point in points] == steps
    assert [point["drt"] for point in points] == pytest.approx(
        [(1 + step) ** 4 - 1 for step in steps], rel=1e-5
    )
    # The first step is downhill, and of first order.
    first, second = points[:2]
    slope = sum(
        (torch.linalg.vector_norm(w) * torch.linalg.vector_norm(g)).item()
        for w, g in zip(
            network.parameters(),
            torch.autograd.grad(answer.loss, list(network.parameters())),
            strict=True,
        )
    )
    expected = -1e-5 * slope / answer.loss.item()
    assert first["loss_change"] == pytest.approx(expected, rel=1e-2)
    for name in ("output_change", "drt", "spectral_drt", "output_bound"):
        assert second[name] == pytest.approx(2 * first[name], rel=1e-2), name
    for name in ("gradient_change", "jacobian_change"):
        assert len(first[name]) == 4
        assert all(0 < value < 1e-2 for value in first[name])


def test_with_the_loss_held_linear_a_linear_network_keeps_its_gradient(images):
    cell = measured_cell(settings(depth=1), images, PICTURES, [0.1])
    (point,) = cell["points"]
    assert point["jacobian_change"] == pytest.approx([0], abs=1e-12)
    assert point["gradient_change"][0] > 0.01


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0])
def test_the_output_changes_by_no_more_than_operator_norms_allow(residual, scale):
    torch.manual_seed(0)
    for depth in (1, 2, 5):
        before = Perceptron(12, 4, depth=depth, residual=residual).double()
        after = copy.deepcopy(before)
        for weight in after.parameters():
            with torch.no_grad():
                weight.add_(torch.randn_like(weight), alpha=scale)
        x = torch.randn(9, 12, dtype=torch.float64)
        distance = network_distance(before, after, norm="both", batch=x)
        bound = output_bound(distance, before, x)
        assert distance.measured.output_change <= bound * (1 + 1e-5)
        if not residual:
            first, last = before(x).logits.norm().item(), x.norm().item()
            stretch = torch.tensor([layer.spectral_norm for layer in distance.layers]).prod().item()
            expected = stretch * last / first * distance.spectral_drt
            assert bound == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_the_bound_is_reached_along_the_direction_that_is_stretched_most(residual):
    before = Perceptron(4, 4, depth=3, residual=residual).double()
    after = copy.deepcopy(before)
    with torch.no_grad():
        # Unlike in their other entries: network_distance takes equal weights for tied ones.
        for n, (weight, other) in enumerate(
            zip(before.parameters(), after.parameters(), strict=True)
        ):
            weight.copy_(torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.1 * n])))
            other.copy_(1.1 * weight)
    x = torch.eye(4, dtype=torch.float64)[:1]
    distance = network_distance(before, after, norm="both", batch=x)
    bound = output_bound(distance, before, x)
    # As exact as network_distance's operator norms.
    assert bound == pytest.approx(distance.measured.output_change, rel=1e-5)
    # A skip makes the same relative update of its branch a smaller one of the layer.
    expected = (3.2**2 * 2.2) / (3.0**2 * 2.0) - 1 if residual else 1.1**3 - 1
    assert bound == pytest.approx(expected, rel=1e-5)


def test_a_network_without_a_gradient_is_a_cell_that_says_so(images, monkeypatch):
    def dead(settings, images):
        network = trained(settings, images)
        with torch.no_grad():
            next(network.parameters()).fill_(0)
        return network

    monkeypatch.setattr(curvature_walk, "trained", dead)
    cell = measured_cell(settings(), images, PICTURES, [0.1])
    assert cell["points"] == [] and "gradient is zero or not finite" in cell["fault"]
    assert {"loss", "accuracy"} <= cell.keys()


def test_a_key_tells_apart_whatever_changes_the_points(images):
    keys = [
        cell_key(settings(), images, 10, 4),
        cell_key(settings(seed=1), images, 10, 4),
        cell_key(settings(lr=0.02), images, 10, 4),
        cell_key(settings(residual=True), images, 10, 4),
        cell_key(settings(), images, 11, 4),
        cell_key(settings(), images, 10, 5),
        cell_key(settings(), read_images("digits", 5), 10, 4),
    ]
    assert all(keys.count(key) == 1 for key in keys)
    # More pictures than there are is all of them.
    assert cell_key(settings(), images, 5000, 4) == cell_key(settings(), images, 1797, 4)
