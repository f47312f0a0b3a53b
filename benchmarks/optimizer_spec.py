"""An optimizer of a benchmark as one word of the command line: `fromage:lr=.01,p_bound=2`."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# Made by create_optimizer under these names.
OURS = (
    "fromage",
    "fromage_spectral",
    "fromage_momentum",
    "fromage_sinkhorn",
    "fromage_factored",
    "muonh",
    "adamh",
    "madam",
    "integer_madam",
)
# Madam as the paper does not have it, to see whether it is missing anything.
WITH_MOMENTUM = "madam_momentum"
# Of the package pytorch_optimizer, in the extra `bench`.
OTHERS = {"lars": "LARS", "lamb": "Lamb", "lion": "Lion"}
NAMES = (*OURS, WITH_MOMENTUM, "adamw", "muon", "sgd", *OTHERS)
WARMUP = 100


@dataclass(frozen=True)
class OptimizerSpec:
    """One optimizer with its options.

    Attributes:
        name: one of NAMES.
        options: the keyword options, sorted by name; no "lr" means the optimizer's default rate.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def lr(self) -> float | None:
        """The rate, or None for the default one."""
        return dict(self.options).get("lr")

    @property
    def relative(self) -> bool:
        """Is the step a fraction of the weights? Such optimizers need no warm-up."""
        return self.name in (*OURS, WITH_MOMENTUM)

    def without(self, *names: str) -> OptimizerSpec:
        """The same optimizer without these options."""
        kept = tuple((key, value) for key, value in self.options if key not in names)
        return OptimizerSpec(self.name, kept)

    def __str__(self) -> str:
        """The word it was read from, in one fixed spelling."""
        if not self.options:
            return self.name
        return self.name + ":" + ",".join(f"{key}={_word(value)}" for key, value in self.options)


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


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(text: str) -> Any:
    try:
        return float(text) if text[0] in ".-+0123456789" else json.loads(text)
    except ValueError:
        return text


class OptimizerRefused(ValueError):
    """An optimizer does not take these options, or this model."""


def build_optimizer(
    spec: OptimizerSpec, model: torch.nn.Module, **defaults: Any
) -> torch.optim.Optimizer:
    """The optimizer of `spec` over the trainable weights of `model`.

    Args:
        spec: what to build.
        model: gives names and roles to our plan, and weights to torch's optimizers.
        defaults: options of torch's optimizers that `spec` may override (betas, weight_decay).

    Raises:
        OptimizerRefused: it does not take these options, or this model.
    """
    options = dict(spec.options)
    # Imported where they are used: a baseline must run where the package does not.
    if spec.name in OURS:
        from hf_relopt import create_optimizer
        from hf_relopt.errors import ConfigError

        if spec.name == "integer_madam":
            _store_in_codes(model, options)
        overrides = _overrides(options)
        try:
            return create_optimizer(model, spec.name, overrides=overrides, **options)
        except ConfigError as error:
            raise OptimizerRefused(f"{spec}: {error}") from error
    if spec.name == "muon":
        from muon import muon_and_adamw

        return muon_and_adamw(model, options, defaults)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if spec.name == WITH_MOMENTUM:
        from madam_momentum import MadamWithMomentum

        return MadamWithMomentum(weights, **options)
    if spec.name == "sgd":
        return torch.optim.SGD(weights, momentum=options.pop("momentum", 0.9), **options)
    if spec.name in OTHERS:
        return _other(OTHERS[spec.name], weights, options)
    stored = options.pop("weights", "float32")
    if stored == "int8":
        from torchao_int8 import train_in_int8

        return train_in_int8(model, **{**defaults, **options})
    if stored not in ("float32", "bfloat16"):
        raise SystemExit(f"weights={stored}: AdamW's are float32, bfloat16 or int8 (torchao's)")
    model.to(getattr(torch, stored))  # the same weights, in place
    return torch.optim.AdamW(weights, fused=True, **{**defaults, **options})


def _other(
    name: str, weights: list[torch.nn.Parameter], options: dict[str, Any]
) -> torch.optim.Optimizer:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise SystemExit(f"{name} needs a package: pip install pytorch_optimizer") from error
    made: torch.optim.Optimizer = getattr(pytorch_optimizer, name)(weights, **options)
    return made


def _store_in_codes(model: torch.nn.Module, options: dict[str, Any]) -> None:
    """Take `format`, `spacing`, `headroom` and `skip` out of `options`, and convert the model."""
    from hf_relopt.lns.format import LNSFormat, format_of
    from hf_relopt.lns.scale import HEADROOM
    from hf_relopt.nn.compression import convert

    form, skip = format_of(options.pop("format", "lns8")), options.pop("skip", None)
    spacing, headroom = options.pop("spacing", None), options.pop("headroom", HEADROOM)
    if spacing is not None:
        form = LNSFormat("tried", form.bits, spacing)
    convert(model, form, [] if skip is None else str(skip).split("+"), headroom)


def _overrides(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take names with a dot out of `options`: a role or name pattern, then its option."""
    found: dict[str, dict[str, Any]] = {}
    for name in [name for name in options if "." in name]:
        target, _, option = name.rpartition(".")
        found.setdefault(target, {})[option] = options.pop(name)
    return found


def rate_in_use(spec: OptimizerSpec, optimizer: torch.optim.Optimizer) -> float:
    """The rate that `spec` gave or that was taken for it; not that of overridden weights."""
    if spec.lr is not None:
        return float(spec.lr)
    groups = [group for group in optimizer.param_groups if group.get("rule") != "adamw"]
    # What is trained beside adapters may have another.
    adapters = [group for group in groups if group.get("role") == "lora"]
    return float(statistics.mode(group["lr"] for group in adapters or groups))


def options_in_use(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Each group's numbers and words, so that a record stays true when a default changes."""
    kinds = (bool, int, float, str, tuple, type(None))
    return [
        {name: value for name, value in group.items() if isinstance(value, kinds)}
        for group in optimizer.param_groups
    ]


def state_bytes_per_weight(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of all state tensors over the number of weights this optimizer steps."""
    weights = sum(weight.numel() for group in optimizer.param_groups for weight in group["params"])
    held = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    return held / weights


def schedule(word: str, steps: int) -> Callable[[int], float]:
    """The factor of the rate that `word` names.

    Args:
        word: "linear": down to 0 at once; "cosine": up over 100 steps, a cosine down to a tenth;
            "warmup_linear": up over 100 steps, then down to 0; "exponential": by 5 % with every
            hundredth of the run.
        steps: length of the run; a warm-up is a tenth of it at most.
    """
    warmup = min(WARMUP, max(1, steps // 10))
    if word == "linear":
        return linear_to_zero(steps)
    if word == "cosine":
        return warmup_cosine_to_tenth(steps, warmup)
    if word == "warmup_linear":
        return warmup_linear_to_zero(steps, warmup)
    if word == "exponential":
        return lambda step: 0.95 ** (100 * step // steps)
    raise SystemExit(f"schedule is {word!r}; use linear, cosine, warmup_linear or exponential")


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


def warmup_linear_to_zero(steps: int, warmup: int) -> Callable[[int], float]:
    """Factor of the rate at step t: linear up over `warmup` steps, then linear down to 0."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return factor
