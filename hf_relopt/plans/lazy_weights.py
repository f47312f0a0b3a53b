"""Weights of lazy modules, which have no shape until a batch has run through the model."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from hf_relopt.errors import ConfigError


def require_shapes(model: nn.Module) -> None:
    """Raise ConfigError for a model with weights of lazy modules that have no shape yet."""
    for name, param in model.named_parameters():
        if is_lazy(param):
            raise no_shape_yet(name)


def no_shape_yet(name: str) -> ConfigError:
    """The error for a weight of a lazy module, where what it follows depends on its shape."""
    return ConfigError(
        f"{name} belongs to a lazy module and has no shape yet, but its options depend on its "
        "shape. Run one batch through the model before you make the optimizer."
    )
