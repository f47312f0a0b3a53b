"""An optimizer of a benchmark as one word of the command line: `fromage:lr=.01,p_bound=2`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

NAMES = ("fromage", "madam", "adamw", "sgd")


@dataclass(frozen=True)
class OptimizerSpec:
    """One optimizer with its options.

    Attributes:
        name: "fromage", "madam", "adamw" or "sgd".
        options: the keyword options, sorted by name; no "lr" means the optimizer's default rate.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def lr(self) -> float | None:
        """The rate, or None for the default one."""
        return dict(self.options).get("lr")

    def __str__(self) -> str:
        """The word it was read from, in one fixed spelling."""
        if not self.options:
            return self.name
        return self.name + ":" + ",".join(f"{key}={value}" for key, value in self.options)


def optimizer_spec(text: str) -> OptimizerSpec:
    """Read `name` or `name:option=value,...`; values are JSON (numbers, true, null) or words.

    Raises:
        argparse.ArgumentTypeError: an unknown name or a malformed option.
    """
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"optimizer {name!r} is none of {', '.join(NAMES)}")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r} is not option=value")
        options[key] = _value(value)
    return OptimizerSpec(name, tuple(sorted(options.items())))


def _value(text: str) -> Any:
    try:
        return float(text) if text[0] in ".-+0123456789" else json.loads(text)
    except ValueError:
        return text


def build_optimizer(
    spec: OptimizerSpec, model: torch.nn.Module, **defaults: Any
) -> torch.optim.Optimizer:
    """The optimizer of `spec` over the trainable weights of `model`.

    Args:
        spec: what to build.
        model: gives names and roles to our plan, and weights to torch's optimizers.
        defaults: options of torch's optimizers that `spec` may override (betas, weight_decay).
    """
    options = dict(spec.options)
    if spec.name in ("fromage", "madam"):
        # Imported here: a baseline must run where the package does not.
        from hf_relopt import create_optimizer

        return create_optimizer(model, spec.name, **options)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if spec.name == "sgd":
        return torch.optim.SGD(weights, momentum=options.pop("momentum", 0.9), **options)
    return torch.optim.AdamW(weights, fused=True, **{**defaults, **options})


def options_in_use(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The first group's numbers and words, so that a record stays true when a default changes."""
    group = optimizer.param_groups[0]
    kinds = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in group.items() if isinstance(value, kinds)}


def linear_to_zero(steps: int) -> Callable[[int], float]:
    """Factor of the rate at step t (from 0): 1 − t/steps."""
    return lambda step: max(0.0, 1.0 - step / steps)


def warmup_cosine_to_tenth(steps: int, warmup: int) -> Callable[[int], float]:
    """Factor of the rate at step t: linear up over `warmup` steps, then a cosine down to 0.1."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * done))

    return factor
