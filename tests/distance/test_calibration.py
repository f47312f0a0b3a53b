"""What really changed on a batch: outputs, loss and gradients, measured as by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, network_distance
from tests.distance.nets import gpt2, moved

TOKENS = torch.arange(24).view(3, 8)


@pytest.fixture
def pair():
    model = gpt2()
    return model, moved(model)


def test_the_output_changes_as_by_hand(pair):
    with torch.no_grad():
        one, other = (net.eval()(input_ids=TOKENS).logits.double() for net in pair)
    expected = float((other - one).norm() / one.norm())
    found = network_distance(*pair, batch={"input_ids": TOKENS}).measured
    assert found.output_change == pytest.approx(expected, rel=1e-9)
    assert found.loss is None and found.gradient_change is None
    assert network_distance(*pair, batch=TOKENS).measured.output_change == found.output_change


def test_loss_and_gradients_change_as_by_hand(pair):
    batch = {"input_ids": TOKENS, "labels": TOKENS}
    grads, losses = [], []
    for net in pair:
        net.eval()
        loss = net(**batch).loss
        loss.backward()
        losses.append(float(loss.detach()))
        grads.append({name: p.grad.clone() for name, p in net.named_parameters()})
        net.zero_grad()
    found = network_distance(*pair, batch=batch, gradients=True).measured
    assert found.loss == pytest.approx(losses, rel=1e-6)
    expected = {n: float((grads[1][n] - g).norm() / g.norm()) for n, g in grads[0].items()}
    assert found.gradient_change == pytest.approx(expected, rel=1e-4)
    assert all(p.grad is None for net in pair for p in net.parameters())


def test_networks_are_left_as_they_were(pair):
    pair[0].train()
    pair[0].transformer.drop.eval()
    network_distance(*pair, batch=TOKENS)
    assert pair[0].training and not pair[0].transformer.drop.training


def test_a_linear_network_changes_by_at_most_the_bound():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(4)])
    found = network_distance(net, moved(net, 1e-3), norm="both", batch=torch.randn(5, 8))
    assert found.measured.output_change > 0
    # |f(x)| may be far below the product of norms, to which the theorem relates the change.
    x = torch.randn(5, 8)
    sizes = [layer.spectral_norm for layer in found.matrices]
    size = torch.tensor(sizes).prod() * x.norm()
    change = (moved(net, 1e-3)(x) - net(x)).norm()
    assert float(change.detach()) <= float(size) * found.spectral_drt


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)

    def forward(self, x):
        return None, self.a(x)


def test_the_first_tensor_of_a_tuple_is_the_output():
    assert network_distance(Two(), Two(), batch=torch.ones(1, 2)).measured.output_change > 0


@pytest.mark.parametrize(
    ("batch", "gradients", "words"),
    [
        (torch.empty(0, 8, dtype=torch.int64), False, "batch is empty"),
        ({"input_ids": torch.empty(0, 4, dtype=torch.int64)}, False, "batch is empty"),
        ({}, False, "batch is a dict without tensors"),
        ([1, 2], False, "batch is a list without tensors"),
        (TOKENS, True, "gradients=True needs a loss"),
        (None, True, "gradients=True needs a batch"),
    ],
)
def test_bad_batches(pair, batch, gradients, words):
    with pytest.raises(ConfigError, match=words):
        network_distance(*pair, batch=batch, gradients=gradients)


def test_weights_alone_cannot_run(pair):
    with pytest.raises(ConfigError, match="batch needs networks that run, and after is a "):
        network_distance(pair[0], pair[1].state_dict(), batch=TOKENS)


def test_outputs_of_two_shapes_are_refused():
    one, other = nn.Linear(3, 2), nn.Linear(3, 5)
    other.bias = nn.Parameter(torch.ones(2))  # something in common
    other.forward = lambda x: x @ other.weight.T
    with pytest.raises(ConfigError, match="outputs have the shapes"):
        network_distance(one, other, batch=torch.ones(1, 3))
