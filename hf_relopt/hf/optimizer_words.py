"""The optimizer that a Trainer ran, described for a model card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from hf_relopt.options.method import group_method
from hf_relopt.options.tables import DIRECTION_OPTIONS
from hf_relopt.plans.directions import READ_BY
from hf_relopt.plans.entries import SPHERE_WORDS, entry_of_rule
from hf_relopt.plans.plan import peak_lr
from hf_relopt.plans.roles import steps_as_vector


def rules_in_use(optimizer: Any) -> list[str]:
    """Names of the rules in use, most parameters first."""
    groups = getattr(optimizer, "param_groups", [])
    return _by_size(
        (group["rule"], param) for group in groups if "rule" in group for param in group["params"]
    )


def rule_words(optimizer: Any) -> list[str]:
    """The rules in use in words, the first with its options; the class's name for others.

    Args:
        optimizer: as a Trainer has it, perhaps inside Accelerate's wrapper.
    """
    rules = rules_in_use(optimizer)
    shown = ", ".join(f"{name} {value}" for name, value in options_in_force(optimizer).items())
    options = f" ({shown})" if shown else ""
    if not rules:
        return [f"{class_name(optimizer)}{options}"]
    words = [_words(rule) + _directions(optimizer, rule) for rule in rules]
    return [words[0] + options, *words[1:]]


def _words(rule: str) -> str:
    entry = entry_of_rule(rule)
    return rule if entry is None else entry.words


def _directions(optimizer: Any, rule: str) -> str:
    """What a rule's matrices follow, most parameters first; nothing for the gradient alone."""
    of_rule = ((g, param) for g, param in _matrices(optimizer) if g["rule"] == rule)
    used = _by_size((group["direction"], param) for group, param in of_rule)
    entry = entry_of_rule(rule)
    known = entry.directions if entry is not None else {}
    words = [known.get(direction, f"the {direction}") for direction in used]
    along = f", along {' and '.join(words)}" if set(used) - {"gradient"} else ""
    return along + _spheres(optimizer, rule)


def _spheres(optimizer: Any, rule: str) -> str:
    """What a rule's matrices are called that keep their norm; nothing if most do not."""
    entry = entry_of_rule(rule)
    of_rule = [(g, param) for g, param in _matrices(optimizer) if g["rule"] == rule]
    kept = _by_size((str(group["bound"]), param) for group, param in of_rule)
    if entry is None or kept[:1] != ["sphere"]:
        return ""
    on_sphere = ((g["direction"], p) for g, p in of_rule if g["bound"] == "sphere")
    names = [entry.spheres[each] for each in _by_size(on_sphere) if each in entry.spheres]
    return f", norms kept ({' and '.join(names)}, {SPHERE_WORDS})" if names else ""


def _bounds(optimizer: Any) -> list[str]:
    """The values of ``p_bound`` that matrices with directions are held by, most weights first."""
    held = (
        (group_method(group).options["p_bound"], param) for group, param in _matrices(optimizer)
    )
    return _by_size((str(bound), param) for bound, param in held if bound is not None)


def _momenta(optimizer: Any) -> list[str]:
    """Decays of the momenta of matrices with directions, those of most parameters first."""
    read = ((group_method(group), param) for group, param in _matrices(optimizer))
    return _by_size(
        (f"{method.options['momentum']:g}", param)
        for method, param in read
        if method.direction in READ_BY["momentum"]
    )


def _matrices(optimizer: Any) -> Iterator[tuple[Mapping[str, Any], Tensor]]:
    """The weights that have a frame and are no vectors, with their groups."""
    for group in optimizer.param_groups:
        if _has_frame(group):
            yield from (
                (group, param) for param in group["params"] if not steps_as_vector(group, param)
            )


def _by_size(pairs: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The words that tensors are paired with, those of most parameters first."""
    sizes: dict[str, int] = {}
    for word, param in pairs:
        sizes[word] = sizes.get(word, 0) + param.numel()
    return sorted(sizes, key=lambda word: -sizes[word])


def options_in_force(optimizer: Any) -> dict[str, Any]:
    """Those of the first rule's largest group, without lists of weights and torch's own flags."""
    groups = getattr(optimizer, "param_groups", [])
    if not groups:
        return {}
    first = rules_in_use(optimizer)[:1]
    named = [group for group in groups if [group.get("rule")] == first] or groups
    largest = max(named, key=lambda group: sum(p.numel() for p in group["params"]))
    hidden = {"params", "param_names", "role", "rule", "lr", "initial_lr", "fused", "foreach",
              "lr_factor", "capturable", "differentiable", "maximize", "decoupled_weight_decay",
              "backend", "shapes_crc32"}  # fmt: skip
    read = _in_force(largest)
    if "p_bound" in read:  # presets hold rows and matrices by different ones
        read["p_bound"] = " and ".join(_bounds(optimizer)) or read["p_bound"]
    # Of these some may have a momentum, and others none.
    read["momentum"] = " and ".join(_momenta(optimizer)) or read.get("momentum")
    if not read.get("step_in_backward"):
        hidden.add("step_in_backward")
    return {n: value for n, value in read.items() if n not in hidden and value is not None}


def _has_frame(group: Mapping[str, Any]) -> bool:
    """Whether the group's rule has directions, scales and bounds, as Fromage does."""
    return "rule" in group and group.keys() >= DIRECTION_OPTIONS.keys()


def _in_force(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's options; of a frame, what its steps read, with defaults filled in."""
    if not _has_frame(group):
        return dict(group)
    method = group_method(group)
    given = method.options
    read = {**group, **dict.fromkeys(DIRECTION_OPTIONS), "p_bound": given["p_bound"]}
    read["bound"] = group["bound"]
    if method.direction in READ_BY["momentum"]:
        read |= {"momentum": given["momentum"], "momentum_dtype": group["momentum_dtype"]}
        read["nesterov"] = group["nesterov"]
    for name in ("beta", "iterations"):
        if method.direction in READ_BY[name]:
            read[name] = given[name]
    return read


def class_name(optimizer: Any) -> str:
    """The class of an optimizer, inside Accelerate's wrapper."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__


def peak_lr_of(optimizer: Any) -> float | None:
    """The learning rate that the schedule of most weights starts from; None without groups."""
    groups = getattr(optimizer, "param_groups", [])
    if not groups:
        return None
    largest = max(groups, key=lambda group: sum(p.numel() for p in group["params"]))
    return peak_lr(largest)
