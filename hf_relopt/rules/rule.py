"""What a step has to know of each rule: its state, its sums, and where its equations are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hf_relopt.rules import adamw, fromage, integer_madam, madam, moments
from hf_relopt.rules.facts import Facts

# (param, grad, *buffers, **coefficients, **constants) -> (new param, *new buffers)
Update = Callable[..., tuple[Tensor, ...]]
# What a step sums of each slice: |U|; |U| and |W|; these and <W,U>/(|W||U|).
Sums = Literal["grad", "norms", "cosine"]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        buffers: names of the full-size float32 state tensors that its update writes, in its order.
        anchored: does it need |W0|?
        largest_grad: a gradient whose norm is larger counts as not finite: its squares are none. So
            does one whose norm the rule's precision has no number for.
        constants: options that the update takes as they are.
        sums: what a steady step with these options has to sum. The first one needs |W| too, if the
            rule is anchored.
        coefficients: facts and options -> what the update takes per slice.
        update: the equation.
        largest_norm: (|W0|, options) -> |W| at which a slice is held; inf if at none.
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


@dataclass(frozen=True)
class Moments:
    """What a direction keeps of the gradients, and how it takes one in.

    Attributes:
        buffers: names of the state tensors in the update's order.
        update: (momentum, grad, *other buffers, **decays) -> the new ones.
        largest_grad: as for a rule.
    """

    buffers: tuple[str, ...]
    update: Update
    largest_grad: float = float("inf")


# One squared gradient beyond float32 would make a second moment infinite for the rest of the run.
_LARGEST_WITH_SQUARE = torch.finfo(torch.float32).max ** 0.5


def _fromage_sums(options: Mapping[str, Any]) -> Sums:
    return "norms" if options["p_bound"] is None and options["bound"] is None else "cosine"


def _fromage_largest_norm(anchor_norm: Tensor, options: Mapping[str, Any]) -> Tensor:
    if options["p_bound"] is None:
        return no_bound(anchor_norm)
    return torch.where(anchor_norm != 0, options["p_bound"] * anchor_norm.abs(), torch.inf)


def _madam_largest_entry(anchor_norm: Tensor, numel: int, options: Mapping[str, Any]) -> Tensor:
    largest = options["p_scale"] * anchor_norm / max(numel, 1) ** 0.5
    return torch.where(anchor_norm > 0, largest, torch.inf)


def no_bound(anchor_norm: Tensor, *_: Any) -> Tensor:
    """The largest norm, or entry, under a rule that bounds none."""
    return torch.full_like(anchor_norm, torch.inf)


# Beside a second moment in 8 bits: the level of each row's largest entry, see lns/squares.py.
SQUARES_TOP = "second_moment_top"

RULES: dict[str, Rule] = {
    "fromage": Rule(
        buffers=(),
        anchored=True,
        largest_grad=float("inf"),
        constants=(),
        sums=_fromage_sums,
        coefficients=fromage.of_tensors,
        update=fromage.update,
        largest_norm=_fromage_largest_norm,
        largest_entry=no_bound,
    ),
    "madam": Rule(
        buffers=("second_moment",),
        anchored=True,
        largest_grad=_LARGEST_WITH_SQUARE,
        constants=("beta", "g_bound", "min_scale"),
        sums=lambda options: "grad",
        coefficients=madam.of_tensors,
        update=madam.update,
        largest_norm=no_bound,
        largest_entry=_madam_largest_entry,
    ),
    "integer_madam": Rule(
        buffers=("second_moment", SQUARES_TOP),
        anchored=False,
        largest_grad=_LARGEST_WITH_SQUARE,
        constants=("beta", "g_bound"),
        sums=lambda options: "grad",
        coefficients=integer_madam.of_tensors,
        update=integer_madam.update,
        largest_norm=no_bound,
        largest_entry=no_bound,
    ),
    "adamw": Rule(
        buffers=("exp_avg", "exp_avg_sq"),
        anchored=False,
        largest_grad=_LARGEST_WITH_SQUARE,
        constants=("betas", "eps", "weight_decay"),
        sums=lambda options: "grad",
        coefficients=adamw.of_tensors,
        update=adamw.update,
        largest_norm=no_bound,
        largest_entry=no_bound,
    ),
}

# The same with a second moment in float32.
INTEGER_MADAM_FLOAT32 = replace(RULES["integer_madam"], buffers=("second_moment",))
# Fromage along anything but the gradient of a full tensor; along a gradient over its running root
# mean square; and what vectors follow beside these.
DIRECTED = replace(RULES["fromage"], coefficients=fromage.of_slices)
RUNNING = replace(DIRECTED, coefficients=fromage.of_running)
ELEMENTWISE = replace(
    RULES["fromage"],
    sums=lambda options: "norms",
    coefficients=fromage.of_vectors,
    largest_norm=no_bound,
)

# What each direction of Fromage keeps of each entry; those that are missing here keep nothing.
MOMENTS: dict[str, Moments] = {
    "momentum": Moments(("momentum",), moments.take_in),
    "spectral": Moments(("momentum",), moments.take_in),
    "adam": Moments(("momentum", "second_moment"), moments.take_in_square, _LARGEST_WITH_SQUARE),
}
# What "rms" keeps of each slice: its running root mean square, and how many gradients are in it.
RUNNING_NUMBERS = ("grad_rms", "grad_count")
# What "factored" keeps of each matrix: the running root mean squares of its rows and its columns.
FACTORS = ("row_rms", "column_rms")
# What "spectral" keeps with a beta: the running root mean squares of a matrix's neurons.
NEURONS = "neuron_rms"
