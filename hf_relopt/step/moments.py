"""Moments: what a direction keeps takes the gradients in, whatever the learning rate is."""

from __future__ import annotations

from functools import lru_cache
from itertools import repeat

from torch import Tensor

from hf_relopt.backends.part import Decision, Equation, Part
from hf_relopt.options.method import Method
from hf_relopt.rules.rounding import ROUNDED_DTYPES, noise_keys
from hf_relopt.step.bundle import Bundle

# A momentum buffer is rounded with noise of its own: numbers beyond those of any weight.
_MOMENTUM_NUMBERS = 2**32


def take_in(bundle: Bundle, learn: Tensor) -> None:
    """Let the moments of a bundle take its gradients in.

    Args:
        learn: bool [T], which gradients are usable.
    """
    method = bundle.method
    assert method.moments is not None
    momenta, *others = zip(*bundle.moments, strict=True)
    buffers = zip(*others, strict=True) if others else repeat(())
    parts = list(map(Part, bundle.whole_views, momenta, bundle.grads(), buffers))
    keys = None
    if parts[0].weight.dtype in ROUNDED_DTYPES:
        numbers = bundle.numbers
        number = numbers.number[bundle.places] + _MOMENTUM_NUMBERS
        keys = noise_keys(method.options["seed"], number, numbers.step[bundle.places])
    bundle.backend.update(parts, _equation(method), Decision({}, learn, learn, keys))


@lru_cache(maxsize=256)  # a method holds no tensors
def _equation(method: Method) -> Equation:
    assert method.moments is not None
    return Equation(method.moments.update, method.decays, method.options["maximize"])
