"""The perceptrons of curvature.py: their equations, and their training."""

from __future__ import annotations

import pytest
import torch
from curvature_networks import NetworkSettings, Perceptron, trained
from digit_images import read_images
from torch.nn import functional as F


@pytest.fixture(scope="module")
def images():
    return read_images("digits", 4)


def settings(**changed):
    words = {"depth": 3, "residual": False, "steps": 0, "lr": 0.01, "batch": 16, "seed": 0}
    return NetworkSettings(**{**words, **changed})


@pytest.mark.parametrize("residual", [False, True])
def test_the_logits_are_those_of_the_equations(residual):
    torch.manual_seed(0)
    network = Perceptron(5, 3, depth=3, residual=residual)
    first, second, last = network.parameters()
    x = torch.randn(7, 5)
    skip = 1.0 if residual else 0.0
    hidden = skip * x + F.relu(x @ first.T)
    hidden = skip * hidden + F.relu(hidden @ second.T)
    labels = torch.arange(7) % 3
    answer = network(x, labels)
    torch.testing.assert_close(answer.logits, hidden @ last.T)
    torch.testing.assert_close(answer.loss, F.cross_entropy(hidden @ last.T, labels))
    assert network(x).loss is None


def test_with_the_slope_of_the_loss_the_gradient_is_that_of_the_loss():
    torch.manual_seed(0)
    network = Perceptron(5, 3, depth=3, residual=True)
    x, labels = torch.randn(7, 5), torch.arange(7) % 3
    answer = network(x, labels)
    slope, *grads = torch.autograd.grad(answer.loss, [answer.logits, *network.parameters()])
    linear = torch.autograd.grad(network(x, slope=slope).loss, list(network.parameters()))
    for grad, other in zip(grads, linear, strict=True):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize(("residual", "depths"), [(False, (2, 16, 64)), (True, (2, 16))])
def test_a_new_network_makes_its_inputs_neither_vanish_nor_explode(residual, depths):
    torch.manual_seed(0)
    x = torch.randn(256, 64)
    sizes = [
        Perceptron(64, 64, depth=depth, residual=residual)(x).logits.square().mean().sqrt().item()
        for depth in depths
    ]
    assert all(0.2 < size < 5 for size in sizes), sizes


@pytest.mark.parametrize("residual", [False, True])
def test_training_lowers_the_loss_and_repeats_bit_by_bit(residual, images):
    def loss(network):
        return network(images.pixels, images.labels).loss.item()

    state = torch.random.get_rng_state()
    before = trained(settings(residual=residual), images)
    after = trained(settings(residual=residual, steps=40), images)
    assert loss(after) < 0.8 * loss(before)
    again = trained(settings(residual=residual, steps=40), images)
    for weight, other in zip(after.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other)
    other_seed = trained(settings(residual=residual, seed=1), images)
    assert not torch.equal(next(before.parameters()), next(other_seed.parameters()))
    assert torch.equal(torch.random.get_rng_state(), state)
