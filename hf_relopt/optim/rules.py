"""What a step has to know of each rule: its state, its sums, and where its equations are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends.batch import Update
from hf_relopt.errors import ConfigError
from hf_relopt.optim.frame import frame_of
from hf_relopt.roles import steps_as_vector
from hf_relopt.rules import adamw, direction, fromage, madam
from hf_relopt.sharding import Sums, WholeNorms


@dataclass(frozen=True)
class Facts:
    """T tensors at the moment of a step (float64, shape [T], on their device)."""

    norms: WholeNorms
    anchor_norm: Tensor
    step: Tensor
    numel: Tensor
    lr: Tensor


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        buffers: names of its full-size float32 state tensors, in the update's order.
        anchored: does it need |W0|?
        largest_grad: a gradient whose norm is larger counts as not finite: its squares are none. So
            does one whose norm the rule's precision has no number for.
        constants: options that the update takes as they are.
        framed: is this only the memory of a tensor that follows Fromage as a frame? The gradient is
            taken in first; then optim/frame_step.py turns what is remembered into a step.
        sums: what a steady step of a group with these options has to sum. The first one needs |W|
            too, if the rule is anchored.
        coefficients: facts and options -> what the update takes per tensor.
        update: the equation.
        largest_norm: (|W0|, options) -> |W| at which a tensor is held, 0-dim; inf if at none.
        largest_entry: the same for an entry, from (|W0|, numel, options).
    """

    buffers: tuple[str, ...]
    anchored: bool
    largest_grad: float
    constants: tuple[str, ...]
    sums: Callable[[Mapping[str, Any]], Sums]
    coefficients: Callable[[Facts, Mapping[str, Any]], dict[str, Tensor]]
    update: Update
    largest_norm: Callable[[Tensor, Mapping[str, Any]], Tensor]
    largest_entry: Callable[[Tensor, int, Mapping[str, Any]], Tensor]
    framed: bool = False

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of its float32 state tensors with one entry; the anchor has one dimension.

        A framed tensor has an anchor for each block or row, which is kept apart.
        """
        one_anchor = self.anchored and not self.framed
        return ("step", "anchor_norm", "skipped") if one_anchor else ("step", "skipped")

    @property
    def state(self) -> tuple[str, ...]:
        """Names of all its state tensors."""
        return (*{*self.scalars, *(["anchor_norm"] if self.anchored else ())}, *self.buffers)


def _fromage(facts: Facts, group: Mapping[str, Any]) -> dict[str, Tensor]:
    assert facts.norms.param is not None
    return fromage.coefficients(
        lr=facts.lr,
        param_norm=facts.norms.param,
        grad_norm=facts.norms.grad,
        cosine=facts.norms.cosine,
        anchor_norm=facts.anchor_norm,
        floor=group["min_scale"] * facts.numel.sqrt(),
        p_bound=group["p_bound"],
        sphere=group["bound"] == "sphere",
        framed=group["bound"] == "sphere",
    )


def _madam(facts: Facts, group: Mapping[str, Any]) -> dict[str, Tensor]:
    return madam.coefficients(
        lr=facts.lr,
        step=facts.step,
        anchor_norm=facts.anchor_norm,
        numel=facts.numel,
        beta=group["beta"],
        p_scale=group["p_scale"],
    )


def _adamw(facts: Facts, group: Mapping[str, Any]) -> dict[str, Tensor]:
    return adamw.coefficients(lr=facts.lr, step=facts.step, betas=group["betas"])


# One squared gradient beyond float32 would make a second moment infinite for the rest of the run.
_LARGEST_WITH_SQUARE = torch.finfo(torch.float32).max ** 0.5


def _fromage_sums(group: Mapping[str, Any]) -> Sums:
    return "norms" if group["p_bound"] is None and group["bound"] is None else "cosine"


def _fromage_largest_norm(anchor_norm: Tensor, group: Mapping[str, Any]) -> Tensor:
    return _largest_norm(anchor_norm, group["p_bound"])


def _framed_largest_norm(anchor_norm: Tensor, group: Mapping[str, Any]) -> Tensor:
    return _largest_norm(anchor_norm, frame_of(group).p_bound)


def _largest_norm(anchor_norm: Tensor, p_bound: float | None) -> Tensor:
    if p_bound is None:
        return _no_bound(anchor_norm)
    return torch.where(anchor_norm != 0, p_bound * anchor_norm.abs(), torch.inf)


def _madam_largest_entry(anchor_norm: Tensor, numel: int, group: Mapping[str, Any]) -> Tensor:
    largest = group["p_scale"] * anchor_norm / max(numel, 1) ** 0.5
    return torch.where(anchor_norm > 0, largest, torch.inf)


def _memory(
    buffers: tuple[str, ...],
    update: Update,
    largest_grad: float = float("inf"),
    largest_norm: Callable[..., Tensor] = _framed_largest_norm,
) -> Rule:
    return Rule(
        buffers=buffers,
        anchored=True,
        largest_grad=largest_grad,
        constants=(),
        sums=lambda group: "grad",
        coefficients=lambda facts, group: {},
        update=update,
        largest_norm=largest_norm,
        largest_entry=_no_bound,
        framed=True,
    )


def _no_bound(anchor_norm: Tensor, *_: Any) -> Tensor:
    return torch.full_like(anchor_norm, torch.inf)


RULES: dict[str, Rule] = {
    "fromage": Rule(
        buffers=(),
        anchored=True,
        largest_grad=float("inf"),
        constants=(),
        sums=_fromage_sums,
        coefficients=_fromage,
        update=fromage.update,
        largest_norm=_fromage_largest_norm,
        largest_entry=_no_bound,
    ),
    "madam": Rule(
        buffers=("second_moment",),
        anchored=True,
        largest_grad=_LARGEST_WITH_SQUARE,
        constants=("beta", "g_bound", "min_scale"),
        sums=lambda group: "grad",
        coefficients=_madam,
        update=madam.update,
        largest_norm=_no_bound,
        largest_entry=_madam_largest_entry,
    ),
    "adamw": Rule(
        buffers=("exp_avg", "exp_avg_sq"),
        anchored=False,
        largest_grad=_LARGEST_WITH_SQUARE,
        constants=("betas", "eps", "weight_decay"),
        sums=lambda group: "grad",
        coefficients=_adamw,
        update=adamw.update,
        largest_norm=_no_bound,
        largest_entry=_no_bound,
    ),
}

# What Fromage as a frame remembers, by direction; "vector" is what vectors follow there.
MEMORIES: dict[str, Rule] = {
    "gradient": _memory((), direction.keep),
    "momentum": _memory(("momentum",), direction.take_in),
    "spectral": _memory(("momentum",), direction.take_in),
    "adam": _memory(("momentum", "second_moment"), direction.take_in_square, _LARGEST_WITH_SQUARE),
    "vector": _memory(
        ("momentum", "second_moment"), direction.take_in_square, _LARGEST_WITH_SQUARE, _no_bound
    ),
}


def memory_of(group: Mapping[str, Any], param: Tensor) -> str | None:
    """The entry of MEMORIES that ``param`` has in a Fromage group; None: the paper's rule."""
    frame = frame_of(group)
    if frame.is_paper:
        return None
    if not steps_as_vector(group, param):
        return frame.direction
    return None if frame.direction == "gradient" else "vector"


def require_rule(rule: Any) -> str:
    """``rule`` itself, if there is such a rule.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise ConfigError(
            f"rule is {rule!r}; a group follows one of {', '.join(map(repr, RULES))}. Leave it out "
            "for the optimizer's own."
        )
    return rule


def rule_of(group: Mapping[str, Any], param: Tensor) -> Rule:
    """What ``param`` follows as a member of ``group``."""
    if group["rule"] != "fromage":
        return RULES[group["rule"]]
    memory = memory_of(group, param)
    return RULES["fromage"] if memory is None else MEMORIES[memory]
