"""The networks that curvature.py walks from: multilayer perceptrons, plain or residual.

Layers have no biases, and every hidden one is square, as in the theory:

    plain       h_l = relu(W_l h_{l-1})
    residual    h_l = h_{l-1} + relu(W_l h_{l-1})

The last layer reads the classes out of h, without a skip in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from digit_images import Images
from torch import Tensor, nn
from torch.nn import functional as F

from hf_relopt import Fromage


@dataclass(frozen=True)
class NetworkSettings:
    """One network and its training.

    Attributes:
        depth: weight matrices, the one that reads out among them.
        residual: whether hidden layers have a skip.
        steps: of training, 0 for the initial network.
        lr: of Fromage, falling linearly to 0.
        batch: pictures per step.
        seed: of initial weights and batches.
    """

    depth: int
    residual: bool
    steps: int
    lr: float
    batch: int
    seed: int

    @property
    def kind(self) -> str:
        """plain or residual."""
        return "residual" if self.residual else "plain"

    @property
    def words(self) -> str:
        """This network in a few words."""
        return f"{self.depth} layers, {self.kind}, {self.steps} steps, seed {self.seed}"


@dataclass(frozen=True)
class Answer:
    """What a network returns.

    Attributes:
        loss: the mean cross-entropy, or the logits times a fixed slope; None with neither.
        logits: [pictures, classes].
    """

    loss: Tensor | None
    logits: Tensor


class Perceptron(nn.Module):
    """A multilayer perceptron without biases.

    Args:
        width: of inputs and hidden layers.
        classes: of the outputs.
        depth: weight matrices.
        residual: add what comes into a hidden layer to what it makes of it.
    """

    def __init__(self, width: int, classes: int, *, depth: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        sizes = [width] * depth + [classes]
        self.layers = nn.ModuleList(
            nn.Linear(before, after, bias=False) for before, after in pairwise(sizes)
        )
        for layer in self.layers[:-1]:
            # He's for ReLU; branches add up over the depth, and so begin smaller.
            shrink = depth if residual else 1
            nn.init.normal_(layer.weight, std=(2 / (width * shrink)) ** 0.5)
        nn.init.normal_(self.layers[-1].weight, std=width**-0.5)

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, slope: Tensor | None = None
    ) -> Answer:
        """The logits, and a loss if there is something to make it of.

        Args:
            inputs: [pictures, width].
            labels: the classes, for the cross-entropy.
            slope: [pictures, classes], instead of labels: a loss that is linear in the logits. Its
                gradient is the Jacobian's alone, without what a loss adds by its own curvature.
        """
        hidden = inputs
        for layer in self.layers[:-1]:
            made = F.relu(layer(hidden))
            hidden = hidden + made if self.residual else made
        logits = self.layers[-1](hidden)
        if slope is not None:
            return Answer((logits * slope).sum(), logits)
        return Answer(None if labels is None else F.cross_entropy(logits, labels), logits)


def trained(settings: NetworkSettings, images: Images) -> Perceptron:
    """A new network after its training by Fromage; the same settings give the same weights."""
    random = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Perceptron(
            images.pixels.shape[1],
            images.classes,
            depth=settings.depth,
            residual=settings.residual,
        )
    optimizer = Fromage(network.parameters(), lr=settings.lr)
    for step in range(settings.steps):
        chosen = torch.randint(len(images.labels), (settings.batch,), generator=random)
        optimizer.param_groups[0]["lr"] = settings.lr * (1 - step / settings.steps)
        optimizer.zero_grad()
        network(images.pixels[chosen], images.labels[chosen]).loss.backward()
        optimizer.step()
    return network
