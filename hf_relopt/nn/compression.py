"""Compression: a model's weights in place of numbers as codes, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_relopt.errors import ConfigError
from hf_relopt.lns.format import LNSFormat, format_of
from hf_relopt.lns.scale import HEADROOM, check_headroom
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.plans.roles import ROLES, home_of, is_vector, role_of

# Vectors are few, and their signs change; adapters start at zero, whence nothing multiplied comes.
CONVERTED = frozenset({"matrix", "embedding", "head", "conv"})


def convert(
    model: nn.Module,
    form: str | LNSFormat = "lns8",
    skip: Iterable[str] = (),
    headroom: float = HEADROOM,
    *,
    strict: bool = True,
) -> list[str]:
    """Store a model's matrices and embeddings in codes, in place.

    Args:
        form: the format, or its name.
        skip: roles, and patterns over names such as ``lm_head.*``, that stay numbers.
        headroom: room for weights to grow in, see ``scale_of``.
        strict: is it an error if something to skip is not there? A part of a model may lack it.

    Returns: the names of the weights in codes, tied ones once.

    Raises:
        ConfigError: an unknown format, nothing to convert, a weight that cannot be, or one that is
            in another format; nothing is changed then.
    """
    form, skip = format_of(form), _checked(skip)
    check_headroom(headroom)
    chosen = to_convert(model, skip, strict=strict)
    made: dict[str, nn.Parameter] = {}
    for name, param in chosen.items():
        if isinstance(param, LNSTensor):
            if param.form != form:
                raise ConfigError(
                    f"{name} is stored in {param.form.name} already, and would lose once more in "
                    f"{form.name}. Call hf_relopt.decompress(model) first if that is meant."
                )
            continue
        if is_lazy(param) or param.is_meta or hasattr(param, "to_local"):
            raise ConfigError(
                f"{name} of type {type(param).__name__} on {param.device} has no values here to "
                "convert. Compress a model with loaded weights, before it is sharded."
            )
        if bool(param.count_nonzero()):
            # Zeros alone never come back, and would never be trained.
            made[name] = _in_place_of(param, _encoded(name, param, form, headroom))
    found = [name for name, param in chosen.items() if name in made or isinstance(param, LNSTensor)]
    if not found and strict:
        raise ConfigError(
            f"{type(model).__name__} has no weight to store in {form.name}: matrices, embeddings, "
            "heads and kernels of convolutions are, unless they are zero"
            + (f" or among skip={skip}." if skip else ".")
        )
    replace_weights(model, {id(chosen[name]): new for name, new in made.items()})
    return found


def convert_shapes(
    model: nn.Module, form: str | LNSFormat = "lns8", skip: Iterable[str] = ()
) -> None:
    """The same of a model on meta, which has no values: for its plan and its memory."""
    form = format_of(form)
    made = {
        id(param): nn.Parameter(
            LNSTensor.without_values(param.shape, form, param.dtype), param.requires_grad
        )
        for param in to_convert(model, skip).values()
    }
    replace_weights(model, made)


def restore(model: nn.Module, dtype: torch.dtype | None = None) -> list[str]:
    """Make numbers of all codes, in place; return the names of the weights that had some.

    Args:
        dtype: of the numbers; None for the one that they are seen in.
    """
    found = {
        name: param for name, param in model.named_parameters() if isinstance(param, LNSTensor)
    }
    numbers = {
        id(param): _in_place_of(param, param.dequantize().to(dtype or param.dtype))
        for param in found.values()
    }
    replace_weights(model, numbers)
    return list(found)


def to_convert(
    model: nn.Module, skip: Iterable[str] = (), *, strict: bool = True
) -> dict[str, Tensor]:
    """The weights that are stored in codes, by name, tied ones once. They may be on meta.

    Raises:
        ConfigError: something to skip is neither a role nor in any name.
    """
    skip = _checked(skip)
    names: dict[int, list[str]] = {}
    params: dict[int, nn.Parameter] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
        params[id(param)] = param
    unused = {word for word in skip if word not in ROLES}
    chosen: dict[str, Tensor] = {}
    for key, param in params.items():
        name, *tied = names[key]
        role = _role(model, name, tuple(tied), param)
        fits = {word for word in skip if word == role or _matches(word, [name, *tied])}
        unused -= fits
        if role in CONVERTED and not fits and not is_lazy(param) and not is_vector(param):
            chosen[name] = param
    if unused and strict:
        raise ConfigError(
            f"skip has {sorted(unused)[0]!r}, which is in no weight's name and no role. Roles are "
            f"{', '.join(ROLES)}; patterns are over names such as {next(iter(names.values()))[0]}."
        )
    return chosen


def replace_weights(model: nn.Module, new: Mapping[int, nn.Parameter]) -> None:
    """Put other weights in the place of those of these ids, wherever they are."""
    for module in model.modules():
        for name, param in list(module._parameters.items()):
            if param is not None and id(param) in new:
                setattr(module, name, new[id(param)])


def _encoded(name: str, param: Tensor, form: LNSFormat, headroom: float) -> LNSTensor:
    try:
        return LNSTensor.from_float(param.detach(), form, headroom)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _in_place_of(old: Tensor, new: Tensor) -> nn.Parameter:
    """A weight with what others keep on the one before it."""
    made = nn.Parameter(new, requires_grad=old.requires_grad)
    own = {"packed", "scale", "form", "columns", "shard", "_is_param"}
    made.__dict__.update({k: v for k, v in old.__dict__.items() if k not in own})
    return made


def _role(model: nn.Module, name: str, tied: tuple[str, ...], param: Tensor) -> str:
    if is_lazy(param):
        return "lazy"
    module = model.get_submodule(home_of(model, name).rpartition(".")[0])
    return role_of(model, name, tied, param, module)


def _checked(skip: Any) -> list[str]:
    words = [skip] if isinstance(skip, str) else list(skip)
    if not all(isinstance(word, str) for word in words):
        raise ConfigError(
            f"skip is {skip!r}; it takes roles ({', '.join(ROLES)}) and patterns over names, as in "
            "skip=['head', 'encoder.layer.0.*']."
        )
    return words


def _matches(pattern: str, names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
