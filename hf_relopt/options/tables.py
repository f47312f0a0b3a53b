"""Tables: which rule has which options, and the values that None stands for."""

from __future__ import annotations

from typing import Any

import torch

from hf_relopt.backends.backend import BACKENDS
from hf_relopt.options.schema import (
    Option,
    flag,
    integer_or_none,
    is_number,
    none_or,
    number,
    one_of,
    parse_bool,
    parse_pair,
)
from hf_relopt.plans.directions import DIRECTIONS

SCALES = ("tensor", "row", "block")

# 0.95, as in Muon, lags: at the same rate it is further behind until the rate falls.
MOMENTUM = 0.9
# Moments of the vectors' own direction. A second moment that forgets quickly follows the gradients
# of the first steps down; AdamW is run so for small language models.
VECTOR_DECAY, VECTOR_BETA = 0.9, 0.99
# Of "adam", as torch has it, and of those that keep few numbers; "spectral" keeps none without one.
BETAS = {"adam": 0.999, "rms": 0.99, "factored": 0.99, "spectral": None}
ITERATIONS, MOST_ITERATIONS = 5, 100
# Where steps add up, a bound is part of the rule: see rules/fromage.py. Matrices start at norms
# that suit no width in particular (GPT-2: entries of 0.02 at each); the narrower they are, the
# more they have to grow.
P_BOUND = 4.0
LARGEST_P_BOUND = 10.0


def _is_split(value: Any) -> bool:
    sizes = value if isinstance(value, (tuple, list)) else (value,)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in sizes)
    return value is None or (len(sizes) > 0 and whole)


def _parse_split(text: str) -> int | tuple[int, ...]:
    sizes = tuple(int(size) for size in text.strip("()[]").split(";") if size)
    return sizes[0] if len(sizes) == 1 else sizes


DIRECTION_OPTIONS: dict[str, Option] = {
    "direction": one_of(
        "gradient", DIRECTIONS, "use 'gradient' for the paper's rule, 'spectral' for matrices"
    ),
    "scale": one_of(
        "tensor", SCALES, "use 'tensor', 'row' for embeddings, 'block' for fused projections"
    ),
    "bound": one_of(None, ["sphere"], "leave it out, or set p_bound for an upper bound"),
    "momentum": number(
        None,
        "None or 0 <= momentum < 1 (decay of the momentum buffer)",
        lambda value: 0 <= value < 1,
        "use 0.9",
    ),
    "nesterov": Option(
        default=None,
        allowed="None, True or False",
        accepts=lambda value: value is None or isinstance(value, bool),
        parse=none_or(parse_bool),
        remedy="leave it out: it is on for 'momentum' and 'spectral'",
    ),
    "beta": number(
        None,
        "None or 0 <= beta < 1 (decay of the second moment)",
        lambda value: 0 <= value < 1,
        "use 0.999 for 'adam', 0.99 for 'rms' and 'factored', 0.95 for 'spectral'",
    ),
    "iterations": integer_or_none(
        f"None or an integer from 1 to {MOST_ITERATIONS} (of 'sinkhorn')",
        lambda value: 1 <= value <= MOST_ITERATIONS,
        f"leave it out for {ITERATIONS}",
    ),
    "split_dim": integer_or_none(
        "None or an integer >= 0 (a dimension)",
        lambda value: value >= 0,
        "use 0 for torch's Linear, 1 for GPT-2's Conv1D",
    ),
    "split_sizes": Option(
        default=None,
        allowed="None, a count of equal blocks >= 1, or the blocks' sizes along split_dim",
        accepts=_is_split,
        parse=none_or(_parse_split),
        remedy="use 3 for a fused QKV of equal blocks; in --optim_args write sizes as 768;256;256",
    ),
    "momentum_dtype": one_of(None, ["bfloat16"], "leave it out for float32"),
    "share_work": flag(
        "use True where every process has all weights and the same gradients, as in DDP"
    ),
}


def _is_lr(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        # Checked when it is put into a group, since reading it costs a synchronisation.
        if value.numel() != 1 or not value.is_floating_point() or value.is_meta:
            return False
        value = value.item()
    return is_number(value) and 0 <= value < 1


LR = Option(
    default=0.01,
    allowed="0 <= lr < 1, a float or a tensor of one float (a fraction of the weights' size)",
    accepts=_is_lr,
    parse=float,
    remedy="try 0.01 from scratch (0.02 for a preset), 0.001 for fine-tuning",
)

# Options of every rule.
COMMON: dict[str, Option] = {
    "lr": LR,
    "rounding": one_of(
        None, ["stochastic", "nearest"], "None rounds bfloat16 and float16 weights stochastically"
    ),
    "seed": Option(
        default=0,
        allowed="an integer",
        accepts=lambda value: isinstance(value, int) and not isinstance(value, bool),
        parse=int,
        remedy="use 0",
    ),
    "backend": one_of("auto", ("auto", *BACKENDS), "use 'auto'"),
    "maximize": flag("leave it out to minimise"),
    "step_in_backward": flag("use True to step each weight as soon as its gradient is complete"),
}

MIN_SCALE = number(
    0.1,
    "a number >= 0 (root mean square of a tensor that starts at zero)",
    lambda value: value >= 0,
    "use 0.1",
)


def _lr_factor() -> Option:
    return number(
        None,
        "None or 0 < lr_factor <= 100 (a factor on the learning rate of this group)",
        lambda value: 0 < value <= 100,
        "leave it out, or use 0.5 for half of the learning rate",
    )


_FROMAGE: dict[str, Option] = {
    **COMMON,
    **DIRECTION_OPTIONS,
    "p_bound": number(
        None,
        "None or a number > 0 (largest norm of a weight in units of its norm at the first step)",
        lambda value: value > 0,
        "use 1.0 as the paper does for small nets, 2.0 to 3.0 for transformers, or None",
    ),
    "lr_factor": _lr_factor(),
    "min_scale": MIN_SCALE,
}

_MADAM: dict[str, Option] = {
    **COMMON,
    "beta": number(0.999, "0 <= beta < 1", lambda value: 0 <= value < 1, "use 0.999"),
    "p_scale": number(
        3.0,
        "a number > 0 (largest entry in units of the weight's root mean square at the first step)",
        lambda value: value > 0,
        "use 3.0",
    ),
    "g_bound": number(
        10.0, "a number > 0 (largest normalised gradient)", lambda value: value > 0, "use 10.0"
    ),
    "min_scale": MIN_SCALE,
}

_INTEGER_MADAM: dict[str, Option] = {
    **_MADAM,
    "second_moment": one_of(
        "lns8", ("lns8", "float32"), "use 'lns8' for one byte per weight, 'float32' for four"
    ),
}

_ADAMW: dict[str, Option] = {
    **COMMON,
    "betas": Option(
        default=(0.9, 0.999),
        allowed="two numbers in [0, 1)",
        accepts=lambda value: (
            isinstance(value, (tuple, list))
            and len(value) == 2
            and all(is_number(beta) and 0 <= beta < 1 for beta in value)
        ),
        parse=parse_pair,
        remedy="use (0.9, 0.999); in --optim_args write betas=0.9;0.999",
    ),
    "eps": number(1e-8, "a number > 0", lambda value: value > 0, "use 1e-8"),
    "weight_decay": number(0.0, "a number >= 0", lambda value: value >= 0, "use 0.0"),
    # Its own: one that is given for Fromage's weights is not meant for AdamW's.
    "lr_factor": _lr_factor(),
}

OPTIONS: dict[str, dict[str, Option]] = {
    "fromage": _FROMAGE,
    "madam": _MADAM,
    "integer_madam": _INTEGER_MADAM,
    "adamw": _ADAMW,
}
