"""What a step has to know of each rule: its state, its sums, and where its equations are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends.batch import Update
from hf_relopt.rules import adamw, fromage, madam
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
        largest_grad: a gradient whose norm is larger counts as not finite: its squares are none.
        constants: options that the update takes as they are.
        sums: what a steady step of a group with these options has to sum. The first one needs |W|
            too, if the rule is anchored.
        coefficients: facts and options -> what the update takes per tensor.
        update: the equation.
        at_bound: (weights, |W0|, options) -> share of the tensor that is held at its bound, 0-dim.
    """

    buffers: tuple[str, ...]
    anchored: bool
    largest_grad: float
    constants: tuple[str, ...]
    sums: Callable[[Mapping[str, Any]], Sums]
    coefficients: Callable[[Facts, Mapping[str, Any]], dict[str, Tensor]]
    update: Update
    at_bound: Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor]

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of its 0-dim float32 state tensors."""
        return ("step", "anchor_norm", "skipped") if self.anchored else ("step", "skipped")


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

# A weight is at its bound if it is there to within float32 rounding.
_NEARLY = 1 - 1e-5


def _fromage_at_bound(param: Tensor, anchor_norm: Tensor, group: Mapping[str, Any]) -> Tensor:
    if group["p_bound"] is None:
        return torch.zeros_like(anchor_norm)
    norm = torch.linalg.vector_norm(param.float())
    return ((norm >= _NEARLY * group["p_bound"] * anchor_norm) & (anchor_norm > 0)).float()


def _madam_at_bound(param: Tensor, anchor_norm: Tensor, group: Mapping[str, Any]) -> Tensor:
    max_abs = group["p_scale"] * anchor_norm / max(param.numel(), 1) ** 0.5
    share = (param.abs() >= _NEARLY * max_abs).float().mean()
    return torch.where(anchor_norm > 0, share, 0.0)


def _no_bound(param: Tensor, anchor_norm: Tensor, group: Mapping[str, Any]) -> Tensor:
    return torch.zeros_like(anchor_norm)


RULES: dict[str, Rule] = {
    "fromage": Rule(
        buffers=(),
        anchored=True,
        largest_grad=float("inf"),
        constants=(),
        sums=lambda group: "norms" if group["p_bound"] is None else "cosine",
        coefficients=_fromage,
        update=fromage.update,
        at_bound=_fromage_at_bound,
    ),
    "madam": Rule(
        buffers=("second_moment",),
        anchored=True,
        largest_grad=_LARGEST_WITH_SQUARE,
        constants=("beta", "g_bound", "min_scale"),
        sums=lambda group: "grad",
        coefficients=_madam,
        update=madam.update,
        at_bound=_madam_at_bound,
    ),
    "adamw": Rule(
        buffers=("exp_avg", "exp_avg_sq"),
        anchored=False,
        largest_grad=_LARGEST_WITH_SQUARE,
        constants=("betas", "eps", "weight_decay"),
        sums=lambda group: "grad",
        coefficients=_adamw,
        update=adamw.update,
        at_bound=_no_bound,
    ),
}
