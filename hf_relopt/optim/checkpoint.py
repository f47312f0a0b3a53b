"""The checkpoint contract: what is refused, and state that keeps its dtype."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hf_relopt.errors import ConfigError
from hf_relopt.optim import names
from hf_relopt.optim.inputs import shape_of, shapes_crc32
from hf_relopt.options.checks import check_options, check_together, refuse_swallowed, settle
from hf_relopt.options.method import method_of
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans import defaults
from hf_relopt.rules.rule import FACTORS, NEURONS, RULES
from hf_relopt.sharding.layout import local
from hf_relopt.step.state import SCALARS, has_state, state_fault

# Options that belong to the run and not to what it has learnt: a checkpoint's are not taken.
OWN = {"backend", "share_work", "step_in_backward"}
# Of these what is not even written.
_UNWRITTEN = {"step_in_backward"}

# What cannot be below zero: squares, and roots of them.
_SQUARES = {"second_moment", "exp_avg_sq", "grad_rms", *FACTORS, NEURONS}
_COUNTS = {*SCALARS, "grad_count"}

# Options that 0.1.0 did not know. Left out where nobody set them: a distributed checkpoint is read
# key by key, and those of 0.1.0 have none of these.
_LATER = {"fromage": {"iterations"}, "adamw": {"lr_factor"}}

# How to recognise what wrote a checkpoint that has no "rule" in its groups.
_SIGNS = {
    "AdamW or Adam": {"betas", "eps"},
    "SGD": {"momentum", "dampening"},
    "Muon": {"ns_steps"},
    "Adafactor": {"decay_rate", "clip_threshold"},
}


def checked(optimizer: torch.optim.Optimizer, state_dict: Any) -> dict[str, Any]:
    """``state_dict`` in the order of the optimizer's weights, once all of it is checked.

    Returns: a new dict with new groups; the state tensors are the given ones.

    Raises:
        ConfigError: it was not written by the same rules over the same weights, or something in it
            is not what this optimizer could have written.
    """
    check_structure(state_dict)
    groups = [dict(group) for group in state_dict["param_groups"]]
    _check_author(optimizer, groups)
    complete(groups)
    _check_sizes(optimizer, groups)
    groups = names.in_own_order(optimizer.param_groups, groups)
    _check_shapes(optimizer, groups)
    known = {key for group in groups for key in group["params"]}
    stray = [key for key in state_dict["state"] if key not in known]
    if stray:
        raise ConfigError(
            f"This checkpoint has state for {stray[0]!r}, but no weight of its param groups has "
            "that key. It is damaged, or keyed by names like a distributed checkpoint: load such "
            "a checkpoint with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict."
        )
    new = {**state_dict, "param_groups": groups}
    _check_options(optimizer, groups)
    _check_state(optimizer, new)
    return new


def check_structure(state_dict: Any) -> None:
    """Raise ConfigError unless ``state_dict`` is built as an optimizer's is."""
    parts: dict[str, Any] = {"state": Mapping, "param_groups": (list, tuple)}
    for part, kind in parts.items():
        if not isinstance(state_dict, Mapping) or part not in state_dict:
            there = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else state_dict
            raise ConfigError(
                f"This is not an optimizer checkpoint: it has no {part!r}, only {there!r:.200}. "
                "Pass what optimizer.state_dict() returned."
            )
        if not isinstance(state_dict[part], kind):
            raise _damaged(f"its {part!r} is of type {type(state_dict[part]).__name__}")
    for group in state_dict["param_groups"]:
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), (list, tuple)):
            raise _damaged("one of its param groups has no list of params")
        if not all(isinstance(key, (int, str)) for key in group["params"]):
            raise _damaged("the params of a group are neither numbers nor names")
        given = group.get("param_names")
        listed = isinstance(given, (list, tuple)) and len(given) == len(group["params"])
        if given is not None and not listed:
            raise _damaged("the param_names of a group are not one name for each weight")
    for key, state in state_dict["state"].items():
        if not isinstance(state, Mapping):
            raise _damaged(f"its state of {key!r} is of type {type(state).__name__}")


def _damaged(what: str) -> ConfigError:
    return ConfigError(
        f"This checkpoint is damaged: {what}. Load an undamaged one, or start from the weights "
        "alone."
    )


def _check_author(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what another optimizer or another plan has written."""
    own = type(optimizer).__name__
    for group in groups:
        if not isinstance(group.get("rule"), str) or group["rule"] not in RULES:
            raise ConfigError(
                f"This checkpoint was written by {_author(group)}, but this optimizer is {own}. "
                f"Resume with the optimizer that wrote it, or start {own} from the weights alone: "
                "do not load the optimizer's state; in a RelOptTrainer, train(..., "
                "discard_optimizer_state=True)."
            )
    own_groups = optimizer.param_groups
    saved_rules, own_rules = _followed(groups), _followed(own_groups)
    if saved_rules != own_rules and _followed(_with_tables_as_now(groups, own_groups)) == own_rules:
        defaults.warn_once(
            "This checkpoint is of hf_relopt 0.1.0, whose presets stepped embeddings and heads by "
            "row along a momentum. They go on so, with the options of the checkpoint."
        )
    elif saved_rules != own_rules:
        raise ConfigError(
            f"This checkpoint was written with {' and '.join(saved_rules)}, but this {own} has "
            f"{' and '.join(own_rules)}. Resume with the optimizer and the plan that wrote it, or "
            "start from the weights alone."
        )


def _with_tables_as_now(
    groups: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """``groups`` as if their tables of tokens followed what a preset gives them now."""
    roles = {group.get("role") for group in own if group.get("direction") == "rms"} - {None}
    before = ("momentum", "row")
    return [
        {**group, "direction": "rms"}
        if group.get("role") in roles and (group.get("direction"), group.get("scale")) == before
        else group
        for group in groups
    ]


def _check_sizes(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    saved = sorted(len(group["params"]) for group in groups)
    own = sorted(len(group["params"]) for group in optimizer.param_groups)
    if saved != own:
        raise ConfigError(
            f"This checkpoint has param groups of {saved} tensors, this optimizer of {own}: it "
            "belongs to another model or another plan. Load it into the model it was saved from."
        )


def _check_shapes(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    for own_group, saved_group in zip(optimizer.param_groups, groups, strict=True):
        checksum = shapes_crc32(list(map(shape_of, own_group["params"])))
        same_size = len(own_group["params"]) == len(saved_group["params"])
        if not same_size or saved_group.get("shapes_crc32", checksum) != checksum:
            raise ConfigError(
                f"This checkpoint's group of {len(own_group['params'])} tensors has other shapes "
                "than this optimizer's: it belongs to another model. Load it into the model it was "
                "saved from."
            )


def _check_options(optimizer: torch.optim.Optimizer, groups: Sequence[dict[str, Any]]) -> None:
    """Check options as if the optimizer were made with them."""
    for own_group, group in zip(optimizer.param_groups, groups, strict=True):
        settle(group)
        try:
            refuse_swallowed(group["rule"], group)
            check_options(group["rule"], group)
            check_together(group["rule"], {**group, "params": own_group["params"]})
        except ConfigError as error:
            raise ConfigError(f"This checkpoint cannot be loaded: {error}") from None
        start = group.get("initial_lr", 0.0)  # a schedule's
        if not OPTIONS[group["rule"]]["lr"].accepts(start):
            raise _damaged(f"initial_lr, from which its schedule starts, is {start!r:.80}")


def _check_state(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    for param, group, state in _pairs(optimizer, state_dict):
        if is_lazy(param):
            continue
        fault = state_fault(group, param, state) or _number_fault(group, param, state)
        if fault is not None:
            raise ConfigError(
                f"This checkpoint does not fit a weight of shape {tuple(param.shape)}: {fault}. It "
                "is damaged, or belongs to another model or other options. Load it into the model "
                "and the optimizer it was saved from."
            )


def _number_fault(group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]) -> str | None:
    """What is wrong with the numbers in a weight's state, in words."""
    if not has_state(state):
        return None
    for name in method_of(group, param).state:
        value = state[name]
        if value.is_meta or not local(value).numel():
            continue
        value = local(value)
        low, high = (float(end) for end in value.aminmax())
        if name == "anchor_norm":
            # NaN marks an anchor that is not made yet, and a negative one a placeholder.
            made = value[~value.isnan()]
            signed = group.get("scale") in ("row", "block")
            if bool(made.isfinite().all()) and (signed or bool((made >= 0).all())):
                continue
            return f"{name} is {made.tolist()!r:.60}, but only numbers >= 0 belong there"
        if name in _COUNTS:
            # More steps could not be counted in float32.
            if not 0 <= low <= high <= 2**24 or bool((value != value.round()).any()):
                return f"{name} is {low:g}, but only counts belong there"
        elif not (math.isfinite(low) and math.isfinite(high)):
            return f"{name} holds values that are not finite"
        elif name in _SQUARES and low < 0:
            return f"{name} holds {low:g}, but only numbers >= 0 belong there"
    return None


def as_written(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups for a state dict."""
    return [
        {
            name: value
            for name, value in group.items()
            if name not in _UNWRITTEN
            and (value is not None or name not in _LATER.get(group["rule"], ()))
        }
        for group in groups
    ]


def complete(groups: Iterable[dict[str, Any]]) -> None:
    """Give groups of an older checkpoint the options that it did not know, at their defaults."""
    for group in groups:
        # Its name before. Beside the new one it is a key of somebody's schedule.
        if group.get("rule") == "fromage" and "lr_scale" in group and "lr_factor" not in group:
            group["lr_factor"] = group.pop("lr_scale")
        group.update(_completed(group))


def _completed(group: Mapping[str, Any]) -> dict[str, Any]:
    options = OPTIONS.get(group.get("rule", ""), {})
    return {**{name: option.default for name, option in options.items()}, **group}


def restore_values(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Put back, as copies on the right device, what torch has cast to the parameter's dtype.

    It also turns a text that somebody else keeps there into one about a generator.
    """
    for param, _, state in _pairs(optimizer, state_dict):
        for name, value in state.items():
            # Not asked for where there is nothing: state is a defaultdict, and Accelerate swaps the
            # weights of an optimizer that has none yet.
            target = optimizer.state[param]
            if isinstance(value, Tensor):
                like = torch.empty_like(
                    value, device=param.device, memory_format=torch.preserve_format
                )
                target[name] = like.copy_(value)
            else:
                target[name] = copy.deepcopy(value)


def _pairs(
    optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]
) -> Iterator[tuple[Tensor, Mapping[str, Any], Mapping[str, Any]]]:
    """(parameter, saved group, saved state) for each parameter in order."""
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        for param, key in zip(group["params"], saved["params"], strict=True):
            yield param, saved, state_dict["state"].get(key, {})


def kept(optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of the state tensors that the optimizer keeps, of whatever weight."""
    groups = optimizer.param_groups
    return {name for group in groups for p in group["params"] for name in method_of(group, p).state}


def _followed(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rules of groups, each with its direction if it is Fromage with one of its own."""
    found = set()
    for group in map(_completed, groups):
        direction = group.get("direction", "gradient")
        named = isinstance(direction, str) and direction != "gradient"
        found.add(f"{group['rule']} ({direction})" if named else group["rule"])
    return sorted(found)


def _author(group: Mapping[str, Any]) -> str:
    for name, signs in _SIGNS.items():
        if signs <= set(group):
            return name
    return f"another optimizer (its options are {', '.join(sorted(set(group) - {'params'}))})"
