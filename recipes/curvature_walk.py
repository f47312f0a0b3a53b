"""A walk along a network's negative gradient, by the same relative step in every layer.

    W_l(eta) = W_l - eta |W_l| g_l / |g_l|        Frobenius norms, so that r_l = eta in every layer

network_distance measures what changes on the way, beside deep relative trust, (1 + eta)^L - 1, as
in arXiv 2002.03432, and beside what operator norms prove. The gradient changes for two reasons: the
layers' Jacobians do, which is what deep relative trust is about, and the loss has another slope at
other outputs. "jacobian_change" is the gradient's change with the slope held at its first value.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from curvature_networks import NetworkSettings, Perceptron, trained
from digit_images import Images
from torch import Tensor

from hf_relopt import network_distance
from hf_relopt.distance.result import Distance
from hf_relopt.rules.distance import deep_relative_trust, log_deep_relative_trust

# Decades of the relative step: 1e-4 to 1.
SMALLEST, LARGEST = -4, 0
# A point's number as it is written: six digits are more than a picture shows.
DIGITS = 6


def relative_steps(per_decade: int) -> list[float]:
    """From 1e-4 to 1, evenly on a logarithmic scale, with all powers of ten."""
    count = (LARGEST - SMALLEST) * per_decade
    return [_short(10 ** (SMALLEST + n / per_decade)) for n in range(count + 1)]


def cell_key(settings: NetworkSettings, images: Images, pictures: int, per_decade: int) -> dict:
    """What makes a cell the cell it is: with another entry it is measured anew."""
    return {
        "data": images.name,
        "crc32": images.crc32,
        "inputs": images.pixels.shape[1],
        **vars(settings),
        "pictures": min(pictures, len(images.labels)),
        "per_decade": per_decade,
    }


def measured_cell(
    settings: NetworkSettings, images: Images, pictures: int, steps: Sequence[float]
) -> dict[str, Any]:
    """Train one network and walk from it.

    Args:
        settings: which network.
        images: what it learns.
        pictures: of the batch that gradient, loss and changes are taken on.
        steps: the relative steps.

    Returns:
        "loss" and "accuracy" of the network, "points" of its walk; "fault" if there is none, since
        the network has a layer without a gradient.
    """
    begin = time.monotonic()
    # In float64: relative changes of 1e-4 are differences of nearly equal numbers.
    network = trained(settings, images).double()
    batch = {
        "inputs": images.pixels[:pictures].double(),
        "labels": images.labels[:pictures],
    }
    answer = network(**batch)
    slope, *grads = torch.autograd.grad(answer.loss, [answer.logits, *network.parameters()])
    found = {
        "loss": _short(answer.loss.item()),
        "accuracy": _short(float((answer.logits.argmax(1) == batch["labels"]).double().mean())),
    }
    if not all(0 < float(torch.linalg.vector_norm(grad)) < math.inf for grad in grads):
        fault = "a layer's gradient is zero or not finite, so that there is no direction to walk"
        return {**found, "points": [], "fault": fault}
    batch["slope"] = slope
    points = [_point(network, moved(network, grads, step), step, batch) for step in steps]
    return {**found, "points": points, "seconds": round(time.monotonic() - begin, 2)}


def moved(network: Perceptron, grads: Sequence[Tensor], relative_step: float) -> Perceptron:
    """A copy, each layer of which has made one relative step against its gradient."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for weight, grad in zip(copied.parameters(), grads, strict=True):
            scale = torch.linalg.vector_norm(weight) / torch.linalg.vector_norm(grad)
            weight.sub_(grad * (relative_step * scale))
    return copied


def _point(
    before: Perceptron, after: Perceptron, relative_step: float, batch: Mapping[str, Tensor]
) -> dict[str, Any]:
    inputs = {"inputs": batch["inputs"]}
    distance, alone = (
        network_distance(
            before, after, norm=norm, batch={**inputs, name: batch[name]}, gradients=True
        )
        for norm, name in (("both", "labels"), ("frobenius", "slope"))
    )
    measured, linear = distance.measured, alone.measured
    # With gradients=True there is nothing that these could lack.
    assert measured and measured.loss and measured.gradient_change and linear
    start, end = measured.loss
    numbers = {
        "relative_step": relative_step,
        "loss_change": (end - start) / start,
        "output_change": measured.output_change,
        "drt": distance.drt,
        "spectral_drt": distance.spectral_drt,
        "output_bound": output_bound(distance, before, batch["inputs"]),
    }
    return {
        **{name: _short(value) for name, value in numbers.items()},
        "gradient_change": _per_layer(distance, measured.gradient_change),
        "jacobian_change": _per_layer(distance, linear.gradient_change or {}),
    }


def _per_layer(distance: Distance, changes: Mapping[str, float]) -> list[float | None]:
    """In network order; None where a layer has no gradient."""
    return [_short(changes.get(layer.name)) for layer in distance.layers]


def output_bound(distance: Distance, before: Perceptron, inputs: Tensor) -> float:
    """The largest relative change of the output that operator norms allow.

    A layer stretches by at most a_l and its change by at most d_l = |dW_l|, where a_l is |W_l|, or
    1 + |W_l| with a skip (ReLU stretches nothing). So the output changes by at most

        ( prod(a_l + d_l) - prod a_l ) |x|  =  |x| prod a_l (prod(1 + d_l / a_l) - 1)

    which is deep relative trust with d_l / a_l for each layer, times what all layers may stretch.
    """
    norms = [float(layer.spectral_norm or 0) for layer in distance.layers]
    skips = [1.0 if before.residual else 0.0] * (len(before.layers) - 1) + [0.0]
    stretch = [skip + norm for skip, norm in zip(skips, norms, strict=True)]
    updates = [
        float(layer.spectral_update or 0) * norm / whole
        for layer, norm, whole in zip(distance.layers, norms, stretch, strict=True)
    ]
    with torch.no_grad():
        ratio = torch.linalg.vector_norm(inputs) / torch.linalg.vector_norm(before(inputs).logits)
    trust = deep_relative_trust(log_deep_relative_trust(updates))
    return float(ratio) * math.prod(stretch) * trust


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
