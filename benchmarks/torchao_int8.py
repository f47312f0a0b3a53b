"""Weights in torchao's int8: trained so, with stochastic rounding, or compressed after training.

It knows torch's Linear, so GPT-2's Conv1D become those. Embeddings and a head that is tied to them
stay in float32: torchao has no embeddings in int8 that can be trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def version() -> str | None:
    """torchao's, None without it."""
    try:
        import torchao
    except ImportError:
        return None
    return str(torchao.__version__)


def compress(model: nn.Module) -> None:
    """Store the weights of linear layers in int8, in place, for inference."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    _to_linear(model)
    quantize_(model, Int8WeightOnlyConfig())


def train_in_int8(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """Store the weights of linear layers in int8, in place; return torchao's AdamW over all.

    Args:
        model: its head, if it is tied to the embeddings, stays as it is.
        options: of torch's AdamW; moments are kept in float32.

    Raises:
        SystemExit: torchao is not installed.
    """
    if version() is None:
        raise SystemExit("weights=int8 needs torchao: pip install torchao")
    from torchao.optim import _AdamW
    from torchao.prototype.quantized_training import int8_weight_only_quantized_training
    from torchao.quantization import quantize_

    _to_linear(model)
    head = model.get_output_embeddings()  # type: ignore[operator]
    quantize_(
        model,
        int8_weight_only_quantized_training(),
        lambda module, _: isinstance(module, nn.Linear) and module is not head,
    )
    optimizer: torch.optim.Optimizer = _AdamW(model.parameters(), **options)
    return optimizer


def _to_linear(model: nn.Module) -> None:
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                setattr(module, name, _as_linear(child))


def _as_linear(conv: nn.Module) -> nn.Linear:
    inputs, outputs = conv.weight.shape  # type: ignore[union-attr]
    linear = nn.Linear(inputs, outputs)  # type: ignore[arg-type]
    linear.weight = nn.Parameter(conv.weight.detach().t().contiguous())  # type: ignore[union-attr, operator]
    linear.bias = conv.bias  # type: ignore[assignment]
    return linear
