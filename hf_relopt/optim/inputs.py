"""What an optimizer is given: parameters, gradients and learning rates, checked."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_relopt.errors import ConfigError
from hf_relopt.options.checks import check_options, check_rate, is_of_numpy


def as_list(params: Any) -> list[Any]:
    """``params`` (tensors, named tensors or groups) as a list with at least one tensor in it.

    Raises:
        ConfigError: a bare tensor, or nothing to train.
    """
    if isinstance(params, Tensor):
        raise ConfigError("params is one tensor; pass a list of tensors, [tensor].")
    if isinstance(params, nn.Module):
        raise ConfigError(
            f"params is a model ({type(params).__name__}). Pass model.parameters(), or make the "
            "optimizer with create_optimizer(model, 'fromage'), which gives each weight what "
            "suits its role."
        )
    if isinstance(params, set):
        raise _unordered()
    entries = [params] if isinstance(params, dict) else _listed(params)
    groups = [entry for entry in entries if isinstance(entry, dict)]
    if groups and len(groups) < len(entries):
        raise ConfigError(
            "params mixes param groups with tensors. Put the tensors into a group, too: "
            '{"params": [...]}.'
        )
    # A group's generator would be used up by the look into it.
    for group in groups:
        if "params" not in group:
            raise ConfigError(
                f"A param group has no 'params', only {', '.join(map(str, group))}. Add the "
                "tensors that it is for."
            )
        if isinstance(group["params"], set):
            raise _unordered()
        group["params"] = _listed(group["params"])
    if not any(tensors(entry) for entry in entries):
        raise ConfigError(
            "The parameter list is empty; an optimizer needs at least one trainable tensor. Is "
            "the whole model frozen, or has a generator been used up already?"
        )
    return entries


def check_params(group: dict[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """Refuse complex parameters, and those that are in this group or in ``others`` already."""
    if isinstance(group["params"], set):
        raise _unordered()
    group["params"] = _listed(group["params"])
    seen = {param for other in others for param in other["params"]}
    for param in tensors(group):
        if not isinstance(param, Tensor):
            raise ConfigError(
                f"A parameter is of type {type(param).__name__}; an optimizer takes tensors, "
                "(name, tensor) pairs or groups of them. Pass model.parameters()."
            )
        if not is_lazy(param) and param.is_complex():
            raise ConfigError(
                f"A parameter has dtype {param.dtype}; the rules are for real numbers. Train "
                "torch.view_as_real(parameter) instead."
            )
        if param in seen:
            raise ConfigError(
                f"The parameter of shape {shape_of(param)} is in the list twice; it would "
                "take two steps in one. List each tensor once (tied weights are one tensor)."
            )
        seen.add(param)


def _listed(params: Any) -> list[Any]:
    """A group's parameters, which may be one tensor: iterated over it would be its rows."""
    if isinstance(params, str) or not isinstance(params, Iterable):
        raise ConfigError(
            f"params is {params!r} ({type(params).__name__}); an optimizer takes tensors, "
            "(name, tensor) pairs or groups of them. Pass model.parameters()."
        )
    return [params] if isinstance(params, Tensor) else list(params)


def _unordered() -> ConfigError:
    return ConfigError(
        "params is a set, which has no order; checkpoints and rounding depend on the order of the "
        "tensors. Pass a list."
    )


def shape_of(param: Tensor) -> tuple[int, ...] | None:
    """The shape of the whole tensor; None for a weight of a lazy module that has none yet."""
    return None if is_lazy(param) else tuple(param.shape)


def shapes_crc32(shapes: Sequence[tuple[int, ...] | None]) -> int:
    """A checksum of tensors' shapes in order, by which a group knows its model again.

    Fromage's state holds no tensor that would show a weight's shape.
    """
    return zlib.crc32(repr(list(shapes)).encode())


def give_names(group: dict[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """Let ``group`` have names exactly where ``others`` have them, as torch wants it.

    Names in a later group are left out where the first ones have none; weights without a name get
    one that says where they are.
    """
    named = any(isinstance(param, tuple) for param in group["params"]) or "param_names" in group
    if not others or named == ("param_names" in others[0]):
        return
    if named:
        group["params"] = tensors(group)
        group.pop("param_names", None)
        return
    where = f"param_groups.{len(others)}"
    group["params"] = [(f"{where}.{i}", param) for i, param in enumerate(group["params"])]


def check_scheduled(group: dict[str, Any]) -> None:
    """Check what a schedule may have set; an ``lr`` that is a tensor stays on its device."""
    for name in ("lr", "momentum"):
        if is_of_numpy(group.get(name)):
            group[name] = group[name].item()
    given = {"momentum": group["momentum"]} if "momentum" in group else {}
    if isinstance(group["lr"], Tensor):
        check_options(group["rule"], given)
    else:
        check_options(group["rule"], {**given, "lr": group["lr"]})
        check_rate(group["rule"], group)


def names(group: Mapping[str, Any]) -> list[str]:
    """The group's parameters by name, or by number if they have none."""
    given = group.get("param_names")
    return list(given) if given else [f"parameter {i}" for i in range(len(group["params"]))]


def tensors(entry: Any) -> list[Tensor]:
    """The tensors of a group, a (name, tensor) pair or a tensor."""
    params = _listed(entry["params"]) if isinstance(entry, dict) else [entry]
    return [p[1] if isinstance(p, tuple) and len(p) == 2 else p for p in params]
