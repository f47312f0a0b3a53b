"""What an optimizer is given: parameters, gradients and rates, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hf_relopt.errors import ConfigError
from hf_relopt.optim.options import check_options, check_rate


def as_list(params: Any) -> list[Any]:
    """``params`` (tensors, named tensors or groups) as a list with at least one tensor in it.

    Raises:
        ConfigError: a bare tensor, or nothing to train.
    """
    if isinstance(params, Tensor):
        raise ConfigError("params is one tensor; pass a list of tensors, [tensor].")
    if isinstance(params, set):
        raise _unordered()
    entries = [params] if isinstance(params, dict) else list(params)
    # A group's generator would be used up by the look into it.
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry["params"], set):
            raise _unordered()
        if isinstance(entry, dict):
            entry["params"] = _listed(entry["params"])
    if not any(tensors(entry) for entry in entries):
        raise ConfigError(
            "The parameter list is empty; an optimizer needs at least one trainable tensor. Is "
            "the whole model frozen, or has a generator been used up already?"
        )
    return entries


def check_params(group: dict[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """Refuse complex parameters, and those that are in this group or in ``others`` already.

    Parameters without names get numbers for names if those in ``others`` have names.
    """
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
        if is_lazy(param):
            raise ConfigError(
                "A parameter has no shape yet: a lazy module makes its weights in its first "
                "forward pass. Run the model once before the optimizer is made."
            )
        if param.is_complex():
            raise ConfigError(
                f"A parameter has dtype {param.dtype}; the rules are for real numbers. Train "
                "torch.view_as_real(parameter) instead."
            )
        if param in seen:
            raise ConfigError(
                f"The parameter of shape {tuple(param.shape)} is in the list twice; it would "
                "take two steps in one. List each tensor once (tied weights are one tensor)."
            )
        seen.add(param)
    _name_as_others(group, others)


def _name_as_others(group: dict[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """Number the tensors of a group without names that joins groups with names.

    torch would refuse it. Plans name their weights, and callbacks add what they thaw without names.
    """
    named = any(isinstance(param, tuple) for param in group["params"]) or "param_names" in group
    if named or not any("param_names" in other for other in others):
        return
    params = enumerate(group["params"])
    group["params"] = [(f"param_groups.{len(others)}.{n}", param) for n, param in params]


def _listed(params: Any) -> list[Any]:
    """A group's parameters, which may be one tensor: iterated over it would be its rows."""
    return [params] if isinstance(params, Tensor) else list(params)


def _unordered() -> ConfigError:
    return ConfigError(
        "params is a set, which has no order; checkpoints and rounding go by the order of the "
        "tensors. Pass a list."
    )


def check_scheduled(group: Mapping[str, Any]) -> None:
    """Check what a schedule may have set; an ``lr`` that is a tensor stays on its device."""
    given = {"momentum": group["momentum"]} if "momentum" in group else {}
    if isinstance(group["lr"], Tensor):
        check_options(group["rule"], given)
    else:
        check_options(group["rule"], {**given, "lr": group["lr"]})
        check_rate(group["rule"], group)


def check_gradient(param: Tensor, group: Mapping[str, Any], place: int) -> None:
    """Refuse a sparse or complex gradient of the group's parameter at ``place``."""
    grad = param.grad
    assert grad is not None
    if grad.layout is not torch.strided:
        raise ConfigError(
            f"The gradient of {names(group)[place]} is sparse ({grad.layout}); the rules need "
            "whole norms of dense gradients. Build the embedding with sparse=False."
        )
    if grad.is_complex():
        raise ConfigError(
            f"The gradient of {names(group)[place]} is complex ({grad.dtype}); the rules are for "
            "real numbers. Train torch.view_as_real(parameter) instead."
        )


def names(group: Mapping[str, Any]) -> list[str]:
    """The group's parameters by name, or by number if they have none."""
    given = group.get("param_names")
    return list(given) if given else [f"parameter {i}" for i in range(len(group["params"]))]


def tensors(entry: Any) -> list[Tensor]:
    """The tensors of a group, a (name, tensor) pair or a tensor."""
    if isinstance(entry, Tensor):
        return [entry]
    if isinstance(entry, tuple):
        return [entry[1]]
    params = entry["params"] if isinstance(entry, dict) else entry
    params = [params] if isinstance(params, Tensor) else params
    return [param[1] if isinstance(param, tuple) else param for param in params]
