"""Checks of options: bad values, unknown names, and what would be lost without a word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hf_relopt.backends.triton.kernel import missing
from hf_relopt.errors import ConfigError
from hf_relopt.lns.tensor import lns_of
from hf_relopt.options.method import check_method
from hf_relopt.options.schema import Option, is_number
from hf_relopt.options.tables import OPTIONS
from hf_relopt.rules.rule import RULES


def check_options(rule: str, given: Mapping[str, Any]) -> None:
    """Check every option of ``given`` that ``rule`` knows.

    Raises:
        ConfigError: names the option, the value, what is allowed and the remedy; or that
            backend="triton" needs a package that is not there.
    """
    for name, option in OPTIONS[rule].items():
        if name in given and not option.accepts(given[name]):
            raise bad_value(rule, name, given[name], option)
    if given.get("backend") == "triton" and (reason := missing()) is not None:
        raise ConfigError(
            f"backend is 'triton', but {reason}. Remedy: pip install -U triton, which comes with "
            "PyTorch for GPUs, or leave backend at 'auto'."
        )
    if rule != "adamw" and not is_no_decay(given.get("weight_decay")):
        raise ConfigError(
            f"weight_decay is {given['weight_decay']!r}; {rule} takes only 0: it keeps the norms "
            f"of weights by itself. Leave weight_decay at 0{_in_place_of_decay(rule)}."
        )


def _in_place_of_decay(rule: str) -> str:
    bound = next((name for name in ("p_bound", "p_scale") if name in OPTIONS[rule]), None)
    return f", and use {bound} to bound the weights" if bound else ""


def is_no_decay(value: Any) -> bool:
    """None, False or a zero: another library's way to say that there is no weight decay."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_meta and not bool(value)
    return value is None or value is False or (is_number(value) and value == 0)


def check_together(rule: str, group: Mapping[str, Any]) -> None:
    """Check a complete group's options against each other and against its weights.

    Raises:
        ConfigError: as above.
    """
    check_rate(rule, group)
    if group.get("share_work") and group.get("step_in_backward"):
        raise ConfigError(
            "share_work is True with step_in_backward: processes that have all weights would step "
            "before their gradients are averaged. Leave one of them out, or use FSDP2."
        )
    if rule == "fromage":
        check_method({**group, "rule": rule})
    if rule != "integer_madam":
        _refuse_codes(rule, group)


def _refuse_codes(rule: str, group: Mapping[str, Any]) -> None:
    """Refuse weights that are stored in codes, which only one rule can step."""
    for place, entry in enumerate(group["params"]):
        name, param = entry if isinstance(entry, tuple) else (f"parameter {place}", entry)
        codes = lns_of(param)
        if codes is not None:
            raise ConfigError(
                f"{name} of shape {tuple(param.shape)} is stored in {codes.form.name}, whose codes "
                f"{rule} cannot step. Use integer_madam (IntegerMadam) for such weights, freeze "
                "them, or make numbers of them with hf_relopt.decompress(model)."
            )


def check_rate(rule: str, group: Mapping[str, Any]) -> None:
    """Check that ``lr_factor`` times the learning rate is below 1, as any learning rate is.

    Raises:
        ConfigError: as above.
    """
    scale = group.get("lr_factor")
    if scale is not None and not float(group["lr"]) * scale < 1:
        why = "as of any lr" if rule == "adamw" else "a fraction of the weights' size"
        raise ConfigError(
            f"lr_factor is {scale!r} where lr is {float(group['lr']):g}; {rule} takes a product "
            f"below 1 ({why}). Remedy: use an lr below {1 / scale:g}, or a smaller lr_factor."
        )


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


def bad_value(rule: str, name: str, value: object, option: Option) -> ConfigError:
    """The error for an option's value that is not allowed."""
    shown = value
    if name == "lr" and isinstance(value, torch.Tensor) and not value.is_meta:
        shown = value.tolist()
    return ConfigError(
        f"{name} is {shown!r:.80}; {rule} takes {option.allowed}. Remedy: {option.remedy}."
    )


def unknown_option(rule: str, name: str, known: Iterable[str] | None = None) -> ConfigError:
    """The error for an option that ``rule`` does not have."""
    names = sorted(known if known is not None else OPTIONS[rule])
    near = difflib.get_close_matches(name, names, n=1)
    owners = [other for other, options in OPTIONS.items() if other != rule and name in options]
    if owners:
        remedy = f"{name} belongs to {' and '.join(owners)}: leave it out."
    elif near:
        remedy = f"Did you mean {near[0]}?"
    else:
        remedy = "Leave it out, or use one of these."
    return ConfigError(
        f"{rule} has no option {name!r}; its options are {', '.join(names)}. {remedy}"
    )


def refuse_swallowed(rule: str, group: Mapping[str, Any]) -> None:
    """Refuse a param-group key that looks like an option and would do nothing.

    Foreign keys (``initial_lr``, ``param_names``, ``weight_decay`` of 0, ``lr_scale``) belong to
    others and are carried along; another rule's option, or a slip of one letter, would be
    swallowed.

    Raises:
        ConfigError: names the key, the options and the nearest one.
    """
    known_elsewhere = {name for options in OPTIONS.values() for name in options}
    for name in group:
        if name in OPTIONS[rule] or name == "weight_decay" or not isinstance(name, str):
            continue
        if name in known_elsewhere or any(_is_slip(name, option) for option in OPTIONS[rule]):
            raise unknown_option(rule, name)


def _is_slip(name: str, option: str) -> bool:
    """True if ``name`` is ``option`` but for one letter, its vowels, case, or underscores."""
    a, b = ("".join(filter(str.isalnum, word.lower())) for word in (name, option))
    bare_a, bare_b = (re.sub("[aeiou]", "", word) for word in (a, b))
    if a == b or (bare_a == bare_b and len(bare_a) > 3):
        return True
    # Of two or three letters there are too many words, and a foreign key may be one of them.
    if min(len(a), len(b)) < 3 or abs(len(a) - len(b)) > 1:
        return False
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), -1)
    if len(a) != len(b):
        shorter, longer = sorted((a, b), key=len)
        return same < 0 or longer[same + 1 :] == shorter[same:]
    if a[same + 2 :] == b[same + 2 :] and a[same : same + 2] == b[same : same + 2][::-1]:
        return True
    return len(a) > 5 and a[same + 1 :] == b[same + 1 :]


def is_of_numpy(value: Any) -> bool:
    """Whether a value is one number of numpy's."""
    return type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0


def settle(options: dict[str, Any]) -> None:
    """Make numpy's numbers Python's own, and lists tuples, as JSON and sweeps leave them.

    A checkpoint with numbers of numpy could not be read with ``weights_only``.
    """
    for name, value in options.items():
        if is_of_numpy(value):
            options[name] = value.item()
        elif isinstance(value, list) and name in ("betas", "split_sizes"):
            options[name] = tuple(value)


def parse_value(rule: str, name: str, text: str) -> Any:
    """Read one option from text, and check it.

    Raises:
        ConfigError: for an unknown option, text of the wrong kind, or a value out of range.
    """
    options = OPTIONS[rule]
    if name not in options:
        raise unknown_option(rule, name)
    try:
        value = options[name].parse(text)
    except (ValueError, KeyError):
        raise bad_value(rule, name, text, options[name]) from None
    check_options(rule, {name: value})
    return value
