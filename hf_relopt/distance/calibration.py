"""What really changed between two networks on a batch, to put beside what the distance bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_relopt.distance.result import Measured
from hf_relopt.distance.weights import common_names
from hf_relopt.errors import ConfigError


def measured_on(before: Any, after: Any, batch: Any, gradients: bool) -> Measured:
    """Run both networks on ``batch``, in evaluation mode.

    Raises:
        ConfigError: no modules, an empty batch, outputs without a tensor, or gradients without a
            loss.
    """
    for side, network in (("before", before), ("after", after)):
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"batch needs networks that run, and {side} is a {type(network).__name__}. Pass "
                "modules (as AutoModel.from_pretrained returns them), or leave batch out."
            )
    if batch is None:
        raise ConfigError("gradients=True needs a batch with labels. Pass batch, too.")
    _check(batch)
    first = _run(before, batch, gradients)
    second = _run(after, batch, gradients)
    size = torch.linalg.vector_norm(first.output)
    if first.output.shape != second.output.shape:
        raise ConfigError(
            f"the networks' outputs have the shapes {list(first.output.shape)} and "
            f"{list(second.output.shape)}. Compare networks with the same head."
        )
    change = torch.linalg.vector_norm(second.output - first.output) / size
    losses = None
    if first.loss is not None and second.loss is not None:
        losses = (first.loss, second.loss)
    return Measured(float(change), losses, _gradient_change(first, second) if gradients else None)


@dataclass(frozen=True)
class _Outcome:
    """Of one network on the batch: float64 output, the loss if there is one, gradients by name."""

    output: Tensor
    loss: float | None
    grads: dict[str, Tensor]


def _run(network: nn.Module, batch: Any, gradients: bool) -> _Outcome:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with _evaluation(network), torch.set_grad_enabled(gradients):
        if isinstance(batch, Mapping):
            found = network(**_on(batch, device))
        else:
            found = network(batch.to(device))
    loss = getattr(found, "loss", None)
    output = _output(found)
    grads: dict[str, Tensor] = {}
    if gradients:
        if loss is None:
            raise ConfigError(
                "gradients=True needs a loss, and the network returned none. Put labels into the "
                "batch."
            )
        named = {n: p for n, p in network.named_parameters() if p.requires_grad}
        values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        names = common_names(named)
        grads = {n: g.float().cpu() for n, g in zip(names, values, strict=True) if g is not None}
    return _Outcome(
        output.detach().double().cpu(),
        None if loss is None else float(loss.detach()),
        grads,
    )


def _output(found: Any) -> Tensor:
    for name in ("logits", "last_hidden_state", "start_logits"):
        value = getattr(found, name, None)
        if isinstance(value, Tensor):
            return value
    values = found.values() if isinstance(found, Mapping) else found
    if isinstance(values, Tensor):
        return values
    tensors = [v for v in values if isinstance(v, Tensor) and v.dim() > 0] if values else []
    if not tensors:
        raise ConfigError(f"the network returned a {type(found).__name__} without a tensor.")
    return tensors[0]


def _gradient_change(first: _Outcome, second: _Outcome) -> dict[str, float]:
    changes = {}
    for name, grad in first.grads.items():
        other, size = second.grads.get(name), torch.linalg.vector_norm(grad)
        if other is not None and other.shape == grad.shape and size > 0:
            changes[name] = float(torch.linalg.vector_norm(other - grad) / size)
    return changes


def _check(batch: Any) -> None:
    values = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        raise ConfigError(
            f"batch is a {type(batch).__name__} without tensors; pass a tensor, or a dict of them."
        )
    if any(t.numel() == 0 for t in tensors):
        raise ConfigError("batch is empty: one of its tensors has no entries. Pass some inputs.")


def _on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    """Without dropout; every module is put back as it was."""
    was = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training
