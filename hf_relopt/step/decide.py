"""Decide: from norms and state to what a step does with each slice. Pure, on packed numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hf_relopt.backends.kernel import compute_dtype
from hf_relopt.backends.part import Decision
from hf_relopt.options.method import Method
from hf_relopt.rules import fromage
from hf_relopt.rules.facts import Facts
from hf_relopt.rules.moments import running_rms
from hf_relopt.rules.rounding import noise_keys
from hf_relopt.rules.rule import RUNNING_NUMBERS

# A float64 weight outside of it must neither look like one that started at zero nor be unbounded.
_FLOAT32_RANGE = (torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)


class Judged(NamedTuple):
    """Which of T gradients are finite, and which are not all zero either, bool [T]."""

    finite: Tensor
    learn: Tensor


@dataclass(frozen=True)
class Verdict:
    """What is known of the slots on a device once their gradients are judged.

    Attributes:
        judged: [T]: which gradients are usable.
        grad_norm: [T], |g|.
        param_norm: [T], |W| where an anchor is missing.
        learn: [S], whether the gradient of its slot is usable, of each slice.
        lr: the learning rate, one for all or one for each slice.
        moves: is it known that none is zero?
    """

    judged: Judged
    grad_norm: Tensor
    param_norm: Tensor | None
    learn: Tensor
    lr: Tensor
    moves: bool


def judge(grad_norm: Tensor, largest: Tensor | float) -> Judged:
    """Say which gradients are usable.

    Args:
        grad_norm: |g| of the full tensors, [T].
        largest: a norm that is not below it counts as not finite, one or [T].
    """
    # Neither inf nor NaN is below a number.
    finite = grad_norm < largest
    return Judged(finite, finite & (grad_norm > 0))


@dataclass(frozen=True)
class Judging:
    """The formula that judges and counts: grad_norm, largest, step, skipped -> [T] each."""

    def __call__(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which are finite, and usable; and the counts after it."""
        judged = judge(given["grad_norm"], given["largest"])
        return {
            "finite": judged.finite,
            "learn": judged.learn,
            "step": given["step"] + judged.learn,
            "skipped": given["skipped"] + ~judged.finite,
        }


@dataclass(frozen=True)
class RunningOn:
    """The formula by which root mean squares of S slices run on: see ``running_rms``."""

    beta: float

    def __call__(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From grad_rms, grad_count, grad_norm, numel, learn: the new ones of the first two; rms.

        A slice without a gradient rests: what it knows of its gradients does not fade.
        """
        kept, count = (given[name] for name in RUNNING_NUMBERS)
        grad_norm = given["grad_norm"]
        learn = given["learn"] & (grad_norm > 0)
        new_count = count.to(grad_norm.dtype) + 1
        new, rms = running_rms(
            kept.to(grad_norm.dtype), new_count, grad_norm, given["numel"], beta=self.beta
        )
        after = (torch.where(learn, new, kept), torch.where(learn, new_count, count))
        return {
            **{
                name: value.to(kept.dtype)
                for name, value in zip(RUNNING_NUMBERS, after, strict=True)
            },
            "rms": rms,
        }


def largest_grad(method: Method, dtype: torch.dtype) -> float:
    """The norm from which on a gradient is not usable for weights of ``dtype``."""
    # What takes it in may have a shorter range than the weights.
    if method.moments is not None:
        dtype = method.buffers[method.moments.buffers[0]]
    elif method.is_running:
        dtype = torch.float32
    return min(method.largest_grad, torch.finfo(compute_dtype(dtype)).max)


def decide(
    method: Method, wide: torch.dtype, facts: Facts, learn: Tensor, number: Tensor | None
) -> Decision:
    """What a step does with S slices, whose gradients are usable where ``learn`` is.

    Args:
        wide: the precision that the rule runs in.
        facts: what is known of the slices; a cosine is with what the step follows.
        number: int64 [S], each slice's weight by its place in the optimizer; None to round to
            nearest.
    """
    move = learn if facts.moves else learn & (facts.lr != 0)
    if not method.direct:
        # Momenta of several steps may cancel to nothing, which has no direction.
        move = move & (facts.grad_norm > 0) & (facts.grad_norm < torch.inf)
    coefficients = method.rule.coefficients(facts, method.options)
    for name, value in coefficients.items():
        if value.dtype is not torch.bool:
            coefficients[name] = value.to(wide)
    keys = None if number is None else noise_keys(method.options["seed"], number, facts.step)
    return Decision(coefficients, learn, move, keys)


@dataclass(frozen=True)
class Deciding:
    """The formula that decides on S slices, from what is known of them.

    Attributes:
        method, wide: see ``decide``; the method is one of ``as_decided``.
        p_bound: the bound in force, if it is one for all slices.
        moves, from_zero: see ``Facts``.
    """

    method: Method
    wide: torch.dtype
    p_bound: float | None
    moves: bool
    from_zero: bool

    def __call__(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a Decision is made of, from columns of sums, anchor_norm, step, numel, lr, learn.

        There may be grad_rms, p_bound and number as well.
        """
        grad_norm = given["grad_norm"]
        facts = Facts(
            grad_norm=grad_norm,
            param_norm=given.get("param_norm"),
            cosine=given.get("cosine"),
            anchor_norm=given["anchor_norm"].to(grad_norm.dtype),
            step=given["step"].to(grad_norm.dtype),
            numel=given["numel"],
            lr=given["lr"],
            p_bound=given.get("p_bound", self.p_bound),
            moves=self.moves,
            from_zero=self.from_zero,
            grad_rms=given.get("grad_rms"),
        )
        decision = decide(self.method, self.wide, facts, given["learn"], given.get("number"))
        found = {_OF + name: value for name, value in decision.coefficients.items()}
        found["may_move"] = decision.move
        if decision.keys is not None:
            found["keys"] = decision.keys
        return found

    @staticmethod
    def decision(found: Mapping[str, Tensor], learn: Tensor) -> Decision:
        """What was found, as a decision on slices that may ``learn``."""
        coefficients = {
            name.removeprefix(_OF): value for name, value in found.items() if name.startswith(_OF)
        }
        return Decision(coefficients, learn, found["may_move"], found.get("keys"))


@dataclass(frozen=True)
class InOneLook:
    """The formula that decides on slices whose norms have just been summed.

    Attributes:
        running: by which their root mean squares run on, or None.
    """

    running: RunningOn | None
    deciding: Deciding

    def __call__(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is kept by ``running``, and what is decided, by the names that the update has."""
        found: dict[str, Tensor] = {}
        known = dict(given)
        if self.running is not None:
            found = self.running(given)
            known["grad_rms"] = found.pop("rms")
        decided = self.deciding(known)
        return found | {name.removeprefix(_OF): value for name, value in decided.items()}


# Before the name of a coefficient, which may be "move".
_OF = "of_update_"
# What no decision hangs on: a schedule of momenta, say, must not make a formula of each step.
_UNREAD = {
    "backend", "iterations", "maximize", "momentum", "momentum_dtype", "nesterov", "p_bound",
    "rounding", "share_work", "split_dim", "split_sizes", "step_in_backward",
}  # fmt: skip


@lru_cache(maxsize=256)  # a method holds no tensors
def as_decided(method: Method) -> Method:
    """The method without the options that decisions do not hang on."""
    unread = _UNREAD | {"beta"} if method.name == "fromage" else _UNREAD
    values = [(name, None if name in unread else value) for name, value in method.values]
    return replace(method, values=tuple(values))


@dataclass(frozen=True)
class DecideOne:
    """All that is decided on one tensor of a direct method. A compiler keys on it."""

    method: Method
    dtype: torch.dtype

    def __call__(
        self,
        state: dict[str, Tensor],
        rows: Tensor,
        numel: Tensor,
        number: Tensor | None,
        lr: Tensor,
    ) -> tuple[dict[str, Tensor], Decision]:
        """The numbers that are kept, after this step, and what it does; see backends/part.py."""
        norms = norms_of(rows, self.method)
        judged = judge(norms.grad, largest_grad(self.method, self.dtype))
        step = state["step"].to(rows.dtype) + judged.learn
        after = {"step": step, "skipped": state["skipped"] + ~judged.finite}
        anchor = state.get("anchor_norm", step).to(rows.dtype)
        if "anchor_norm" in state and norms.param is not None:
            anchor = with_anchors(anchor, norms.param, judged.finite)
            after["anchor_norm"] = anchor
        facts = Facts(
            norms.grad, norms.param, norms.cosine, anchor, step, numel, lr,
            self.method.options.get("p_bound"),
        )  # fmt: skip
        wide = compute_dtype(self.dtype)
        return after, decide(self.method, wide, facts, judged.learn, number)


class Norms(NamedTuple):
    """|U|, |W| and their cosine of S slices, [S] each, as far as they were summed."""

    grad: Tensor
    param: Tensor | None
    cosine: Tensor | None


def norms_of(rows: Tensor, method: Method) -> Norms:
    """The columns of [S, 1 to 3] sums. Where a method ascends, it follows -g and not g."""
    columns = list(rows.unbind(dim=1))
    if len(columns) == 3 and method.direct and method.options["maximize"]:
        columns[2] = -columns[2]
    return Norms(*columns, *[None] * (3 - len(columns)))


def with_anchors(
    anchor_norm: Tensor,
    param_norm: Tensor,
    finite: Tensor,
    share: Tensor | None = None,
    least: float = 0.0,
) -> Tensor:
    """Make the anchors that are missing (NaN) where the gradient is usable.

    Args:
        share: of parts of tensors, what each would have of its tensor's norm; with ``least``, see
            rules/fromage.py.
    """
    norm = _in_float32(param_norm)
    if share is not None:
        norm = fromage.part_anchor(norm, _in_float32(share), least)
    fresh = torch.isnan(anchor_norm) & finite
    # Through float32, so that the first step sees what is kept.
    return torch.where(fresh, norm.to(torch.float32).to(norm.dtype), anchor_norm)


def _in_float32(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm.clamp(*_FLOAT32_RANGE), 0.0)
