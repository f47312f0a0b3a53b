"""Moments: what a direction keeps takes the gradients in, whatever the learning rate is.

A momentum is read and written once: what follows it is made of it in the same pass, where it is to
be worked on next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat

from torch import Tensor

from hf_relopt.backends.part import Decision, Equation, Part, View
from hf_relopt.options.method import Method
from hf_relopt.rules import moments
from hf_relopt.rules.rounding import ROUNDED_DTYPES, noise_keys
from hf_relopt.rules.rule import Update
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
    _step(bundle, parts, method.moments.update, learn)


def take_in_and_follow(
    bundle: Bundle, views: Sequence[Sequence[View]], into: Sequence[Sequence[Tensor]], learn: Tensor
) -> None:
    """Let the momenta of a bundle take its gradients in, and write down what is followed.

    Where a gradient is not usable what is written is left as it was.

    Args:
        views: of each slot, in which all entries are one slice: the slot's place.
        into: of each view, a tensor with as many entries, which lie one after the other.
        learn: bool [T], which gradients are usable.
    """
    update = moments.look_ahead if bundle.method.options["nesterov"] else moments.follow
    parts: list[Part] = []
    each = zip(views, bundle.moments, bundle.grads(), into, strict=True)
    for own, (momentum,), grad, targets in each:
        for view, target in zip(own, targets, strict=True):
            buffers = (target.view(view.shape),)
            parts.append(Part(view, view.of(momentum), view.of(grad), buffers))
    if parts:
        _step(bundle, parts, update, learn)


def _step(bundle: Bundle, parts: Sequence[Part], update: Update, learn: Tensor) -> None:
    keys = None
    if parts[0].weight.dtype in ROUNDED_DTYPES:
        numbers, seed = bundle.numbers, bundle.method.options["seed"]
        number = numbers.number[bundle.places] + _MOMENTUM_NUMBERS
        keys = noise_keys(seed, number, numbers.step[bundle.places])
    decision = Decision({}, learn, learn, keys)
    bundle.backend.update(parts, _equation(bundle.method, update), decision)


@lru_cache(maxsize=256)  # a method holds no tensors
def _equation(method: Method, update: Update) -> Equation:
    return Equation(update, method.decays, method.options["maximize"])
