"""What Fromage as a frame remembers, and how it takes a gradient in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends.batch import Batch, Decision, Work, constant
from hf_relopt.backends.foreach import apart, end_to_end
from hf_relopt.lns.rounding import ROUNDED_DTYPES
from hf_relopt.optim.decision import GroupRule
from hf_relopt.optim.frame import VECTOR_BETA, VECTOR_DECAY, Frame, frame_of
from hf_relopt.optim.places import Places
from hf_relopt.optim.rules import MEMORIES, memory_of, rule_of
from hf_relopt.optim.state import State, rate_of, widest
from hf_relopt.roles import is_vector
from hf_relopt.rules import direction
from hf_relopt.sharding import Sums, local, local_grad

# The memory is rounded with noise of its own: numbers beyond those of any parameter.
_MEMORY_NUMBERS = 2**32


@dataclass(frozen=True)
class Framed:
    """Parameters of one group, device and dtype whose gradients are taken in.

    ``work`` is what the memory took in; ``learn`` and ``finite`` are bool [T]: was the gradient
    usable, and was it finite? ``anchored``: are all anchors known to be made? Where they are not,
    ``param_norm`` [T] are the norms of the whole tensors.
    """

    group: Mapping[str, Any]
    params: Sequence[Tensor]
    indices: Sequence[int]
    states: Sequence[State]
    work: Work
    learn: Tensor
    finite: Tensor
    anchored: bool
    param_norm: Tensor | None = None

    @property
    def lr(self) -> Tensor:
        """The rate, 0-dim."""
        return self.work.lr

    @property
    def frame(self) -> Frame:
        """The frame of the group."""
        return frame_of(self.group)

    @property
    def memory(self) -> str:
        """What the parameters remember: an entry of MEMORIES."""
        memory = memory_of(self.group, self.params[0])
        assert memory is not None
        return memory

    def only(self, places: Sequence[int]) -> Framed:
        """The parameters at these places."""
        chosen = constant(tuple(places), torch.int64, self.learn.device)
        return Framed(
            self.group,
            [self.params[place] for place in places],
            [self.indices[place] for place in places],
            [self.states[place] for place in places],
            self.work,
            self.learn[chosen],
            self.finite[chosen],
            self.anchored,
            None if self.param_norm is None else self.param_norm[chosen],
        )


def memory_work(
    group: Mapping[str, Any],
    params: Sequence[Tensor],
    indices: Sequence[int],
    states: Sequence[State],
    sums: Sums,
    places: Places,
) -> Work:
    """The work of taking gradients in: the memory is what changes."""
    frame, device = frame_of(group), params[0].device
    memory = memory_of(group, params[0])
    assert memory is not None
    rule = MEMORIES[memory]
    remembered = [local(state["momentum"]) for state in states] if rule.buffers else None
    dtype = remembered[0].dtype if remembered else params[0].dtype
    noisy = remembered is not None and dtype in ROUNDED_DTYPES
    numbers = tuple(_MEMORY_NUMBERS + index for index in indices)
    constants: dict[str, object] = {}
    if remembered:
        constants["decay"] = VECTOR_DECAY if memory == "vector" else frame.momentum
    if "second_moment" in rule.buffers:
        constants["beta"] = VECTOR_BETA if memory == "vector" else frame.beta
    return Work(
        params=remembered or [local(param) for param in params],
        grads=[local_grad(param) for param in params],
        buffers=[tuple(local(state[name]) for name in rule.buffers[1:]) for state in states],
        places=[
            places.of(number, param) if noisy else None
            for number, param in zip(indices, params, strict=True)
        ],
        state=[{name: state[name] for name in rule.scalars} for state in states],
        numel=constant(tuple(param.numel() for param in params), widest(device), device),
        index=constant(numbers, torch.int64, device) if noisy else None,
        lr=rate_of(group, device),
        sums=sums,
        decide=GroupRule.of(group, dtype, memory),
        update=rule.update,
        constants=constants,
        maximize=group["maximize"],
    )


def summed(
    work: Work, group: Mapping[str, Any], params: Sequence[Tensor], _: Sequence[int]
) -> Sequence[Tensor]:
    """Whose norms ``work`` sums beside its gradients': the weights', and never a memory's."""
    of_weights = work.sums == "norms" and rule_of(group, params[0]).framed
    return [local(param) for param in params] if of_weights else work.params


def take_in(work: Work, decision: Decision, apply: Callable[[Batch], None]) -> None:
    """Let the memory take the gradients in, whatever the rate is."""
    if work.constants:
        apply(Batch.of(work, replace(decision, move=decision.learn)))


def directions(batch: Framed) -> list[Tensor]:
    """U of each parameter, as far as this rank's part of it says; "spectral" is momentum so far."""
    if batch.memory == "gradient":
        return _gradients(batch)
    momenta = [local(state["momentum"]).float() for state in batch.states]
    if "second_moment" in batch.states[0]:
        return _adam(batch, momenta)
    if not batch.frame.nesterov:
        return momenta
    grads = [grad.float() for grad in _gradients(batch)]
    return direction.nesterov(momenta, grads, decay=batch.frame.momentum)


def _gradients(batch: Framed) -> list[Tensor]:
    grads = [local_grad(param) for param in batch.params]
    return list(torch._foreach_neg(grads)) if batch.group["maximize"] else grads


def _adam(batch: Framed, momenta: Sequence[Tensor]) -> list[Tensor]:
    decays = (VECTOR_DECAY, VECTOR_BETA)
    mu, beta = decays if batch.memory == "vector" else (batch.frame.momentum, batch.frame.beta)
    steps = torch.stack([state["step"] for state in batch.states]).to(widest(momenta[0].device))
    corrections = (1 - mu**steps).float(), (1 - beta**steps).float()
    seconds = [local(state["second_moment"]) for state in batch.states]
    if batch.memory != "vector":
        each = zip(momenta, seconds, *corrections, strict=True)
        return [direction.adam(m, v, correction1=c1, correction2=c2) for m, v, c1, c2 in each]
    # Vectors are many and small: end to end they cost what one of them does.
    sizes = [momentum.numel() for momentum in momenta]
    counts = constant(tuple(sizes), torch.int64, momenta[0].device)
    first, second = (c.repeat_interleave(counts, output_size=sum(sizes)) for c in corrections)
    together = end_to_end(momenta), end_to_end(seconds)
    found = apart(direction.adam(*together, correction1=first, correction2=second), momenta)
    return [
        towards if is_vector(param) else _where_touched(towards, param)
        for towards, param in zip(found, batch.params, strict=True)
    ]


def _where_touched(towards: Tensor, param: Tensor) -> Tensor:
    """Biases of experts, or of positions: those that nothing has met in this step rest."""
    return torch.where(local_grad(param) != 0, towards, 0.0)
