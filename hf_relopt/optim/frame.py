"""Fromage as a frame, direction x scale x bound: its options, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_relopt.errors import ConfigError
from hf_relopt.optim.option import Option, flag, none_or, number, one_of, parse_bool
from hf_relopt.roles import steps_as_vector

DIRECTIONS = ("gradient", "momentum", "spectral", "adam")
SCALES = ("tensor", "row", "block")

# 0.95, as in Muon, lags: at the same rate it is further behind until the rate falls.
MOMENTUM = 0.9
# Moments of the vectors' own direction. A second moment that forgets quickly follows the gradients
# of the first steps down; AdamW is run so for small language models.
VECTOR_DECAY, VECTOR_BETA = 0.9, 0.99
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


FRAME_OPTIONS: dict[str, Option] = {
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
        "use 0.999",
    ),
    "split_dim": Option(
        default=None,
        allowed="None or an integer >= 0 (a dimension)",
        accepts=lambda value: (
            value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
        ),
        parse=none_or(int),
        remedy="use 0 for torch's Linear, 1 for GPT-2's Conv1D",
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

# Which direction reads which option.
_READ_BY = {
    "momentum": ("momentum", "spectral", "adam"),
    "nesterov": ("momentum", "spectral"),
    "beta": ("adam",),
    "momentum_dtype": ("momentum", "spectral", "adam"),
}


@dataclass(frozen=True)
class Frame:
    """The frame of a group, with what is None in its options filled in.

    Attributes:
        p_bound: the bound in force, or None.
        split_dim, split_sizes: of scale "block"; None: one block per index of the first dimension.
    """

    direction: str
    scale: str
    sphere: bool
    p_bound: float | None
    momentum: float
    nesterov: bool
    beta: float
    split_dim: int
    split_sizes: int | tuple[int, ...] | None
    momentum_dtype: torch.dtype
    share_work: bool

    @property
    def is_paper(self) -> bool:
        """True for the paper's direction and scale, which one pass over the weights can do."""
        return self.direction == "gradient" and self.scale == "tensor"

    @property
    def in_experts(self) -> bool:
        """True if each index of the first dimension is a matrix of its own."""
        return self.scale == "block" and self.split_sizes is None

    def blocks(self, shape: torch.Size, name: str = "a weight") -> list[int]:
        """Sizes of the blocks of a tensor along ``split_dim``; of one block if it has no more.

        Raises:
            ConfigError: the split does not fit.
        """
        if self.scale != "block":
            return [shape[self.split_dim]] if len(shape) else [1]
        sizes = self.split_sizes
        if sizes is None:
            if len(shape) < 3:
                raise ConfigError(
                    f"scale is 'block' for {name} of shape {tuple(shape)} without split_sizes; "
                    "only tensors of three or more dimensions have blocks by default. Set how to "
                    "split it, as in split_sizes=3, or use scale='tensor'."
                )
            return [1] * shape[0]
        if len(shape) > 2 and self.split_dim > 0:
            raise ConfigError(
                f"split_dim is {self.split_dim} for {name} of shape {tuple(shape)}; a tensor of "
                "three or more dimensions is split along dimension 0 only. Leave out split_dim "
                "and split_sizes for one block per index of dimension 0."
            )
        length = shape[self.split_dim] if self.split_dim < len(shape) else 0
        if isinstance(sizes, int):
            if length % sizes or not length:
                raise _bad_split(self, shape, name, "does not divide")
            return [length // sizes] * sizes
        if sum(sizes) != length:
            raise _bad_split(self, shape, name, "does not add up to")
        return list(sizes)


def _bad_split(frame: Frame, shape: torch.Size, name: str, what: str) -> ConfigError:
    has = shape[frame.split_dim] if frame.split_dim < len(shape) else "missing"
    return ConfigError(
        f"split_sizes is {frame.split_sizes!r}, which {what} dimension {frame.split_dim} ({has}) "
        f"of {name} of shape {tuple(shape)}. Give a count that divides it or sizes that sum to "
        "it, choose another split_dim, or use scale='tensor'."
    )


def frame_of(group: Mapping[str, Any]) -> Frame:
    """The frame that a group's options make.

    Raises:
        ConfigError: options that contradict each other, or that nothing would read.
    """
    # Asked for each tensor in each step: a tuple of values is what is quickly looked up.
    values = tuple([group[name] for name in FRAME_OPTIONS])
    if isinstance(group["split_sizes"], list):
        values = tuple(tuple(value) if isinstance(value, list) else value for value in values)
    return _frame(values, group["p_bound"])


@lru_cache(maxsize=256)  # a schedule may change the momentum in every step
def _frame(values: tuple[Any, ...], p_bound: float | None) -> Frame:
    given = dict(zip(FRAME_OPTIONS, values, strict=True))
    direction, scale = given["direction"], given["scale"]
    _refuse_unread(given)
    if given["bound"] == "sphere" and p_bound is not None:
        raise ConfigError(
            f"p_bound is {p_bound!r} together with bound 'sphere', which already keeps the norm "
            "exactly. Leave one of them out."
        )
    if direction == "spectral" and scale == "row":
        raise ConfigError(
            "scale is 'row' with direction 'spectral'; a row is no matrix to orthogonalize. Use "
            "scale='tensor' or 'block', or direction='momentum' for an embedding. (A preset steps "
            "embeddings and heads by row: set direction and scale for one role, such as 'matrix'.)"
        )
    if given["split_dim"] and given["split_sizes"] is None:
        raise ConfigError(
            f"split_dim is {given['split_dim']} without split_sizes, and each index of dimension "
            f"0 is then one block. Set how to split dimension {given['split_dim']}, as in "
            "split_sizes=3, or leave split_dim out."
        )
    paper = direction == "gradient" and scale == "tensor"
    if p_bound is not None and p_bound > LARGEST_P_BOUND and not paper:
        raise ConfigError(
            f"p_bound is {p_bound!r} with direction {direction!r} and scale {scale!r}; it takes "
            f"at most {LARGEST_P_BOUND:g} there, since successive steps add up and the norms "
            "would grow until the model stops learning. Use 2.0 to 4.0."
        )
    if p_bound is None and given["bound"] is None and not paper:
        p_bound = P_BOUND
    return Frame(
        direction=direction,
        scale=scale,
        sphere=given["bound"] == "sphere",
        p_bound=p_bound,
        momentum=MOMENTUM if given["momentum"] is None else given["momentum"],
        nesterov=given["nesterov"] is not False and direction in _READ_BY["nesterov"],
        beta=0.999 if given["beta"] is None else given["beta"],
        split_dim=given["split_dim"] or 0,
        split_sizes=given["split_sizes"],
        momentum_dtype=torch.bfloat16 if given["momentum_dtype"] else torch.float32,
        share_work=given["share_work"],
    )


def _refuse_unread(given: Mapping[str, Any]) -> None:
    for name, readers in _READ_BY.items():
        if given[name] is not None and given["direction"] not in readers:
            raise ConfigError(
                f"{name} is {given[name]!r} with direction {given['direction']!r}, which does not "
                f"read it; the directions that do are {', '.join(map(repr, readers))}. Leave it "
                "out, or use one of these. (torch's OneCycleLR and CyclicLR set a momentum: pass "
                "cycle_momentum=False.)"
            )
    for name in ("split_dim", "split_sizes"):
        if given[name] is not None and given["scale"] != "block":
            raise ConfigError(
                f"{name} is {given[name]!r} with scale {given['scale']!r}, which splits nothing. "
                "Leave it out, or use scale='block'."
            )


def check_frame(group: Mapping[str, Any]) -> None:
    """Check a Fromage group's options against each other and against its weights.

    Raises:
        ConfigError: names the option, the value, what is allowed and the remedy.
    """
    frame = frame_of(group)
    for place, param in enumerate(group["params"]):
        name, tensor = param if isinstance(param, tuple) else (f"parameter {place}", param)
        if is_lazy(tensor):
            if frame.is_paper:
                continue
            raise no_shape_yet(name)
        vector = steps_as_vector(group, tensor)
        if not vector:
            frame.blocks(tensor.shape, name)
        if frame.sphere and (frame.direction == "gradient" or not vector):
            _refuse_zero(tensor, name)


def require_shapes(model: nn.Module) -> None:
    """Raise ConfigError for a model with weights of lazy modules that have no shape yet."""
    for name, param in model.named_parameters():
        if is_lazy(param):
            raise no_shape_yet(name)


def no_shape_yet(name: str) -> ConfigError:
    """The error for a weight of a lazy module, where what it follows depends on its shape."""
    return ConfigError(
        f"{name} belongs to a lazy module and has no shape yet, but its options depend on its "
        "shape. Run one batch through the model before you make the optimizer."
    )


def check_spectral(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a spectral direction where there is no matrix that could have one.

    Raises:
        ConfigError: as above.
    """
    for group in groups:
        vectors = (steps_as_vector(group, param) for param in group["params"])
        if group.get("direction") == "spectral" and not all(vectors):
            return
    raise ConfigError(
        "direction is 'spectral', but none of its weights is a matrix: there is nothing to "
        "orthogonalize. Use direction='adam' for vectors, or also pass the model's matrices."
    )


def _refuse_zero(param: Tensor, name: str) -> None:
    # A shard cannot say it for the whole, nor a tensor without entries yet.
    if param.is_meta or hasattr(param, "to_local") or math.prod(param.shape) == 0:
        return
    if not bool(param.detach().count_nonzero()):
        raise ConfigError(
            f"bound is 'sphere', and {name} of shape {tuple(param.shape)} is all zero: its norm "
            "would stay 0, and it could never move. Leave out bound for it (in a group of its "
            "own, or by an override), or initialize it first."
        )
