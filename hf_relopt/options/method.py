"""Methods: what a weight follows, made from its group's options, its role and its shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hf_relopt.errors import ConfigError
from hf_relopt.lns.tensor import is_lns
from hf_relopt.options.tables import (
    BETAS,
    DIRECTION_OPTIONS,
    ITERATIONS,
    LARGEST_P_BOUND,
    MOMENTUM,
    OPTIONS,
    P_BOUND,
    VECTOR_BETA,
    VECTOR_DECAY,
)
from hf_relopt.plans.directions import READ_BY
from hf_relopt.plans.lazy_weights import no_shape_yet
from hf_relopt.plans.roles import steps_as_vector
from hf_relopt.rules.rule import (
    DIRECTED,
    ELEMENTWISE,
    FACTORS,
    INTEGER_MADAM_FLOAT32,
    MOMENTS,
    NEURONS,
    RULES,
    RUNNING,
    RUNNING_NUMBERS,
    SQUARES_TOP,
    Moments,
    Rule,
    Sums,
)

# Options that a method does not hold: they belong to a group's learning rate, or say when it steps.
_OF_THE_GROUP = ("lr", "lr_factor", "step_in_backward")
# A vector's scale beside rows or blocks.
_WHOLE = {"scale": "tensor", "split_dim": None, "split_sizes": None}
# What is None in a Fromage group and stands for another value.
_DEFAULTS: dict[str, Any] = {"momentum": MOMENTUM, "split_dim": 0, "iterations": ITERATIONS}
# Directions of matrices as such: a row is none.
OF_MATRICES = {
    "spectral": "a row is no matrix to orthogonalize",
    "sinkhorn": "a row alone is no matrix to balance",
    "factored": "a row alone is no matrix with columns to measure",
}


@dataclass(frozen=True)
class Method:
    """What a weight follows: a rule with its options. Equal ones step alike.

    Attributes:
        name: of the rule, a key of RULES.
        elementwise: is it a vector beside directed matrices? It follows m/sqrt(v) then.
        values: the rule's options, sorted by name, with what is None filled in; without what
            belongs to the learning rate.
    """

    name: str
    elementwise: bool
    values: tuple[tuple[str, Any], ...]

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The options by name."""
        return dict(self.values)

    @cached_property
    def direction(self) -> str:
        """What a step follows: an entry of DIRECTIONS."""
        return "adam" if self.elementwise else self.options.get("direction", "gradient")

    @cached_property
    def scale(self) -> str:
        """What has a norm of its own: "tensor", "row" or "block"."""
        return "tensor" if self.elementwise else self.options.get("scale", "tensor")

    @cached_property
    def direct(self) -> bool:
        """True if a step follows the gradient of the full tensor: one look at it is enough."""
        return self.direction == "gradient" and self.scale == "tensor"

    @cached_property
    def rule(self) -> Rule:
        """The equations."""
        if self.in_codes:
            in_float = self.options["second_moment"] == "float32"
            return INTEGER_MADAM_FLOAT32 if in_float else RULES[self.name]
        if self.direct:
            return RULES[self.name]
        if self.elementwise:
            return ELEMENTWISE
        return RUNNING if self.is_running else DIRECTED

    @property
    def in_codes(self) -> bool:
        """True if weights are stored in codes."""
        return self.name == "integer_madam"

    @cached_property
    def is_running(self) -> bool:
        """True if a running root mean square of each slice's gradients is kept."""
        return self.direction == "rms"

    @cached_property
    def moments(self) -> Moments | None:
        """What the direction keeps, if it keeps anything. Some rules' updates keep their own."""
        return MOMENTS.get(self.direction)

    @cached_property
    def decays(self) -> dict[str, float]:
        """Of the moments."""
        if self.moments is None:
            return {}
        momentum, beta = self.options["momentum"], self.options["beta"]
        if self.elementwise:
            momentum, beta = VECTOR_DECAY, VECTOR_BETA
        return (
            {"decay": momentum, "beta": beta} if self.direction == "adam" else {"decay": momentum}
        )

    @cached_property
    def sums(self) -> Sums:
        """What a steady step sums of each slice."""
        return self.rule.sums(self.options)

    @cached_property
    def largest_grad(self) -> float:
        """A gradient whose norm is not below it counts as not finite."""
        kept = self.moments.largest_grad if self.moments else float("inf")
        return min(self.rule.largest_grad, kept)

    @cached_property
    def buffers(self) -> Mapping[str, torch.dtype]:
        """Names and dtypes of the full-size state tensors."""
        low = self.options.get("momentum_dtype") is not None
        names = (*(self.moments.buffers if self.moments else ()), *self.rule.buffers)
        found = {
            name: torch.bfloat16 if low and name == "momentum" else torch.float32
            for name in names
            if name != SQUARES_TOP
        }
        if SQUARES_TOP in names:
            found["second_moment"] = torch.uint8
        return found

    @cached_property
    def constants(self) -> dict[str, Any]:
        """What the rule's update takes as it is."""
        return {name: self.options[name] for name in self.rule.constants}

    @cached_property
    def state(self) -> tuple[str, ...]:
        """Names of all state tensors."""
        return ("step", "skipped", *self.slice_numbers, *self.factors, *self.buffers)

    @cached_property
    def slice_numbers(self) -> tuple[str, ...]:
        """Names of those that hold one number for each slice."""
        anchor = ["anchor_norm"] if self.rule.anchored else []
        return (*anchor, *(RUNNING_NUMBERS if self.is_running else ()))

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """Names of those that hold numbers of the rows and columns of its matrices."""
        if SQUARES_TOP in self.rule.buffers:
            return (SQUARES_TOP,)
        if self.direction == "spectral" and self.options["beta"] is not None:
            return (NEURONS,)
        return FACTORS if self.direction == "factored" else ()

    @property
    def in_experts(self) -> bool:
        """True if each index of the first dimension is a matrix of its own."""
        return self.scale == "block" and self.options["split_sizes"] is None

    def blocks(self, shape: Sequence[int], name: str = "a weight") -> list[int]:
        """Sizes of the blocks of a tensor along ``split_dim``; of one block if it has no more.

        Raises:
            ConfigError: the split does not fit.
        """
        dim = self.options.get("split_dim", 0)
        if self.scale != "block":
            return [shape[dim]] if len(shape) else [1]
        sizes = self.options["split_sizes"]
        if sizes is None:
            if len(shape) < 3:
                raise ConfigError(
                    f"scale is 'block' for {name} of shape {tuple(shape)} without split_sizes; "
                    "only tensors of three or more dimensions have blocks by default. Set how to "
                    "split it, as in split_sizes=3, or use scale='tensor'."
                )
            return [1] * shape[0]
        if len(shape) > 2 and dim > 0:
            raise ConfigError(
                f"split_dim is {dim} for {name} of shape {tuple(shape)}; a tensor of "
                "three or more dimensions is split along dimension 0 only. Leave out split_dim "
                "and split_sizes for one block per index of dimension 0."
            )
        length = shape[dim] if dim < len(shape) else 0
        if isinstance(sizes, int):
            if length % sizes or not length:
                raise self._bad_split(shape, name, "does not divide")
            return [length // sizes] * sizes
        if sum(sizes) != length:
            raise self._bad_split(shape, name, "does not add up to")
        return list(sizes)

    def _bad_split(self, shape: Sequence[int], name: str, what: str) -> ConfigError:
        dim, sizes = self.options["split_dim"], self.options["split_sizes"]
        has = shape[dim] if dim < len(shape) else "missing"
        return ConfigError(
            f"split_sizes is {sizes!r}, which {what} dimension {dim} ({has}) "
            f"of {name} of shape {tuple(shape)}. Give a count that divides it or sizes that sum to "
            "it, choose another split_dim, or use scale='tensor'."
        )


def method_of(group: Mapping[str, Any], param: Tensor) -> Method:
    """What ``param`` follows as a member of ``group``.

    Raises:
        ConfigError: options that contradict each other, or that nothing would read.
    """
    method = group_method(group)
    if method.in_codes and not is_lns(param):
        return _of_numbers(method)
    # A vector has no rows or blocks. Beside matrices with a direction it has one of its own.
    if method.direct or not steps_as_vector(group, param):
        return method
    if method.direction != "gradient":
        return Method(method.name, True, method.values)
    return group_method({**group, **_WHOLE})


@cache
def _of_numbers(method: Method) -> Method:
    """What plain numbers follow beside weights in codes."""
    return Method("madam", False, tuple([(n, method.options[n]) for n in _names("madam")]))


def group_method(group: Mapping[str, Any]) -> Method:
    """What the matrices of a group follow.

    Raises:
        ConfigError: as above.
    """
    rule = group["rule"]
    return _method(rule, tuple([(name, _hashable(group[name])) for name in _names(rule)]))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@cache
def _names(rule: str) -> tuple[str, ...]:
    return tuple(sorted(set(OPTIONS[rule]).difference(_OF_THE_GROUP)))


@lru_cache(maxsize=256)  # a schedule may change the momentum in every step
def _method(rule: str, values: tuple[tuple[str, Any], ...]) -> Method:
    given = dict(values)
    if not DIRECTION_OPTIONS.keys() <= given.keys():
        return Method(rule, False, values)
    _refuse_contradictions(given)
    own = (given["direction"], given["scale"]) != ("gradient", "tensor")
    if own and given["p_bound"] is None and given["bound"] is None:
        given["p_bound"] = P_BOUND
    for name, value in {**_DEFAULTS, "beta": BETAS.get(given["direction"], 0.999)}.items():
        given[name] = value if given[name] is None else given[name]
    given["nesterov"] = given["nesterov"] is not False and given["direction"] in READ_BY["nesterov"]
    return Method(rule, False, tuple(sorted(given.items())))


def _refuse_contradictions(given: Mapping[str, Any]) -> None:
    _refuse_unread(given)
    direction, scale, p_bound = given["direction"], given["scale"], given["p_bound"]
    if given["bound"] == "sphere" and p_bound is not None:
        raise ConfigError(
            f"p_bound is {p_bound!r} together with bound 'sphere', which already keeps the norm "
            "exactly. Leave one of them out."
        )
    if direction in OF_MATRICES and scale == "row":
        raise ConfigError(
            f"scale is 'row' with direction {direction!r}; {OF_MATRICES[direction]}. Use "
            "scale='tensor' or 'block', or direction='rms' for an embedding. (A preset steps "
            "embeddings and heads by row: set direction and scale for one role, such as 'matrix'.)"
        )
    if given["split_dim"] and given["split_sizes"] is None:
        raise ConfigError(
            f"split_dim is {given['split_dim']} without split_sizes, and each index of dimension "
            f"0 is then one block. Set how to split dimension {given['split_dim']}, as in "
            "split_sizes=3, or leave split_dim out."
        )
    own = (direction, scale) != ("gradient", "tensor")
    if p_bound is not None and p_bound > LARGEST_P_BOUND and own:
        raise ConfigError(
            f"p_bound is {p_bound!r} with direction {direction!r} and scale {scale!r}; it takes "
            f"at most {LARGEST_P_BOUND:g} there, since successive steps add up and the norms "
            "would grow until the model stops learning. Use 2.0 to 4.0."
        )


def _refuse_unread(given: Mapping[str, Any]) -> None:
    for name, readers in READ_BY.items():
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


def check_method(group: Mapping[str, Any]) -> None:
    """Check a Fromage group's options against each other and against its weights.

    Raises:
        ConfigError: names the option, the value, what is allowed and the remedy.
    """
    method = group_method(group)
    for place, param in enumerate(group["params"]):
        name, tensor = param if isinstance(param, tuple) else (f"parameter {place}", param)
        if is_lazy(tensor):
            if method.direct:
                continue
            raise no_shape_yet(name)
        if not steps_as_vector(group, tensor):
            method.blocks(tensor.shape, name)
        if has_sphere(group, tensor):
            _refuse_zero(tensor, name)


def check_matrices(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse directions of matrices where there is no matrix that could have one.

    Raises:
        ConfigError: as above.
    """
    asked = [group for group in groups if group.get("direction") in OF_MATRICES]
    for group in asked:
        if not all(steps_as_vector(group, param) for param in group["params"]):
            return
    directions = " and ".join(sorted({repr(group["direction"]) for group in asked}))
    raise ConfigError(
        f"direction is {directions}, but none of its weights is a matrix: there is nothing to "
        "orthogonalize, to balance or to factor. Use direction='adam' for vectors, or also pass "
        "the model's matrices."
    )


def has_sphere(group: Mapping[str, Any], param: Tensor) -> bool:
    """True for a weight that is kept at its first norm. Vectors with a direction have none."""
    directed = group.get("direction", "gradient") != "gradient"
    return group.get("bound") == "sphere" and not (directed and steps_as_vector(group, param))


def no_radius(param: Tensor, name: str) -> ConfigError:
    """The error for a weight on the sphere that is all zero."""
    return ConfigError(
        f"bound is 'sphere', and {name} of shape {tuple(param.shape)} is all zero: its norm would "
        "stay 0, and it could never move. Leave out bound for it, in a group of its own or by an "
        f"override ({name}.bound=none in --optim_args), or initialize it first."
    )


def _refuse_zero(param: Tensor, name: str) -> None:
    # A shard cannot say it for the whole, nor a tensor without entries yet.
    if param.is_meta or hasattr(param, "to_local") or math.prod(param.shape) == 0:
        return
    if not bool(param.detach().count_nonzero()):
        raise no_radius(param, name)
