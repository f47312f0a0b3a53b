"""Hold LoRA adapters: their change of a weight, dW = s B A, stays within rho |W0|.

W0 is frozen and nothing is copied: |dW| comes from the factors. Where dW has left the ball, B is
shortened, which gives the nearest point of the ball.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_relopt.distance.adapters import LowRank, is_peft_model, of_peft_model
from hf_relopt.distance.ball import local_squares
from hf_relopt.errors import ConfigError, UnsupportedSetup
from hf_relopt.rules import ball
from hf_relopt.sharding.layout import is_sharded

_INSTEAD = "hold takes LoRA with one active adapter and frozen, floating-point weights below it."


@dataclass(frozen=True)
class Factors:
    """What one adapter adds to one weight.

    Attributes:
        name: of the weight.
        a, b: the factors, as they are trained.
        scaling: s.
        base: the frozen weight.
    """

    name: str
    a: Tensor
    b: Tensor
    scaling: float
    base: Tensor

    def square(self) -> Tensor:
        """|sBA|^2, float64."""
        b = self.b.detach().flatten(1) * self.scaling
        return LowRank(b, self.a.detach().flatten(1), self.base.shape).square()

    def base_square(self) -> Tensor:
        """|W0|^2 of the weight below, float64."""
        return local_squares([self.base.detach()])[0]


def factors_of(model: nn.Module) -> list[Factors]:
    """The factors of a model's LoRA layers; empty for a model without adapters.

    Raises:
        ConfigError: adapters that are no products of two factors, several at once, or weights
            below them that are trained or quantized.
        UnsupportedSetup: factors that are sharded over ranks.
    """
    if not is_peft_model(model):
        return []
    changed = of_peft_model(model).changes
    found = []
    for path, layer in model.named_modules():
        if not hasattr(layer, "base_layer"):
            continue
        for adapter in layer.active_adapters:
            if (factors := _factors(path, layer, adapter)) is not None:
                found.append(factors)
    if len(found) != len(changed):
        raise ConfigError(
            f"{type(model).__name__} has {len(found)} active adapters on the {len(changed)} "
            f"weights that they change. {_INSTEAD} Activate one, unmerged: model.set_adapter(name)."
        )
    # The adapters' own names of the weights, which a distance has, too.
    return [replace(each, name=name) for each, name in zip(found, changed, strict=True)]


def _factors(path: str, layer: Any, adapter: str) -> Factors | None:
    pairs = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
    for first, second in pairs:
        if adapter not in getattr(layer, first, {}):
            continue
        a, b = (getattr(layer, name)[adapter] for name in (first, second))
        a, b = (each if isinstance(each, Tensor) else each.weight for each in (a, b))
        base = layer.get_base_layer().weight
        if is_sharded(a) or is_sharded(b):
            raise UnsupportedSetup(
                f"{path}: hold needs LoRA's factors on one rank, and they are sharded. Train "
                "adapters under DDP, or on a single device."
            )
        if base.requires_grad or not base.is_floating_point():
            state = "trained" if base.requires_grad else f"stored as {base.dtype}"
            raise ConfigError(f"{path}: the weight below the adapter is {state}. {_INSTEAD}")
        return Factors(path, a, b, float(layer.scaling[adapter]), base)
    return None


class LoraBall:
    """Adapters whose changes stay within ``rho`` times the norms of the weights below.

    Args:
        factors: of the weights that are held; none below is zero.
        rho: the radius.
    """

    def __init__(self, factors: list[Factors], rho: float) -> None:
        self.factors, self.rho = factors, rho
        self._norms = torch.stack([each.base_square() for each in factors]).sqrt()

    @torch.no_grad()
    def pull(self) -> None:
        """Shorten B where the change has left the ball; nothing waits for the device."""
        norms = self._norms
        squares = torch.stack([each.square().to(norms) for each in self.factors])
        shares = ball.kept_share(squares.sqrt(), norms, self.rho)
        for each, share in zip(self.factors, shares.unbind(), strict=True):
            factor = share.to(each.b.device, torch.promote_types(each.b.dtype, torch.float32))
            each.b.copy_(torch.where(factor < 1, (each.b * factor).to(each.b.dtype), each.b))
