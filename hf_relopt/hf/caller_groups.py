"""Param groups that a trainer made itself, and their plan.

Each weight gets the rule and options of its model's plan, then those of its group (a learning rate,
an option). Weights outside the model, as those of a loss, get their role from their shape.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from hf_relopt.errors import ConfigError
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.optim import inputs
from hf_relopt.optim.create import plan as make_plan
from hf_relopt.options.checks import is_no_decay
from hf_relopt.plans.entries import in_place_of_decay, rule_of_name
from hf_relopt.plans.plan import Entry, Overrides, Plan
from hf_relopt.plans.roles import role_of

INSTEAD = (
    "A trainer also takes a finished optimizer: "
    "optimizers=(hf_relopt.create_optimizer(model, {optim!r}), None)."
)


@dataclass(frozen=True)
class CallerGroup:
    """One group as a trainer passes it: its weights, with names if it has them, and its options."""

    params: tuple[tuple[str | None, Tensor], ...]
    own: dict[str, Any]

    @property
    def lr(self) -> float | Tensor | None:
        """Its own learning rate, or None."""
        return self.own.get("lr")

    def without_lr(self) -> CallerGroup:
        """The group without its own learning rate."""
        return replace(self, own={n: value for n, value in self.own.items() if n != "lr"})


def read_groups(params: Any, optim: str) -> list[CallerGroup]:
    """The param groups that a trainer passes to an optimizer's class, checked.

    Args:
        params: tensors, (name, tensor) pairs, or groups of them.
        optim: for the message.

    Raises:
        ConfigError: nothing to train, a tensor in two places, or a weight decay.
    """
    groups: list[CallerGroup] = []
    loose: list[tuple[str | None, Tensor]] = []
    for entry in inputs.as_list(params):
        if isinstance(entry, dict):
            groups.append(_read(entry, len(groups), optim))
        else:
            loose.append(_named(entry))
    if loose:
        groups.append(CallerGroup(tuple(loose), {}))
    seen: set[Tensor] = set()
    for group in groups:
        for name, param in group.params:
            if param in seen:
                raise ConfigError(
                    f"The weight {name or tuple(param.shape)} is in the trainer's param groups "
                    "twice; it would take two steps in one. List each weight once."
                )
            seen.add(param)
    return groups


def _read(entry: Mapping[str, Any], number: int, optim: str) -> CallerGroup:
    params = [_named(param) for param in entry["params"]]
    names = entry.get("param_names")
    if names is not None:
        params = [(name, param) for name, (_, param) in zip(names, params, strict=True)]
    own = {n: value for n, value in entry.items() if n not in ("params", "param_names")}
    if own.get("rule") != "adamw":
        refuse_weight_decay(own.pop("weight_decay", 0), f"param group {number}", optim)
    if isinstance(own.get("lr"), float):
        own["lr"] = float(own["lr"])  # LrInForce stays in the arguments
    return CallerGroup(tuple(params), own)


def refuse_weight_decay(value: Any, where: str, optim: str) -> None:
    """Raise ConfigError for a weight decay that a trainer's own code asks for."""
    if not is_no_decay(value):
        raise ConfigError(
            f"weight_decay is {value!r} in {where} that the trainer passes; {optim} takes only 0: "
            "it keeps the norms of weights by itself. Set the trainer's weight decay to "
            f"0{in_place_of_decay(optim)}."
        )


def _named(param: Any) -> tuple[str | None, Tensor]:
    return (param[0], param[1]) if isinstance(param, tuple) else (None, param)


class KnownWeights:
    """The plan entry of each weight of a model, without holding the weights in memory.

    FSDP2 replaces a model's weights once the optimizer is made; a reference to the old ones would
    keep a second model in memory.
    """

    def __init__(self, chosen: Plan) -> None:
        nothing: Any = None
        self._known = {
            id(entry.param): (_weakly(entry.param), number, replace(entry, param=nothing), skip)
            for skip, entries in ((False, chosen.entries), (True, chosen.skipped))
            for number, entry in enumerate(entries)
        }

    def find(self, param: Tensor) -> tuple[int, Entry, bool] | None:
        """(place in the model, entry, is it skipped) of a weight of the model, else None."""
        found = self._known.get(id(param))
        if found is None or found[0]() is not _weakly(param)():
            return None
        return found[1], replace(found[2], param=param), found[3]


def _weakly(param: Tensor) -> weakref.ref[Tensor]:
    """A weak reference by which a weight is known again.

    Of weights in codes to their bytes: torch does not move a tensor to a device, nor find that it
    is there, while there is a weak reference to it.
    """
    return weakref.ref(param.packed if isinstance(param, LNSTensor) else param)


def plan_of_groups(
    groups: Sequence[CallerGroup],
    known: KnownWeights | None,
    *,
    optim: str,
    lr: float | Tensor,
    overrides: Overrides,
    options: Mapping[str, Any],
) -> Plan:
    """The plan of the weights in ``groups``.

    Groups without options of their own make one plan in the model's order. This is the stock
    Trainer's case, whose groups only separate weights with and without weight decay.

    Args:
        known: the entries of the model's plan; None without a model.

    Raises:
        ConfigError: without a model, an override that matches nothing.
    """
    found: list[tuple[int, Entry, bool]] = []
    strangers: list[tuple[str, Tensor, Mapping[str, Any]]] = []
    plain = not any(group.own for group in groups)
    for number, group in enumerate(groups):
        for place, (name, param) in enumerate(group.params):
            here = known.find(param) if known is not None else None
            if here is None:
                strangers.append((name or f"param_groups.{number}.{place}", param, group.own))
                continue
            entry = replace(here[1], options=_merged(here[1], group.own, overrides, optim))
            found.append((here[0] if plain else len(found), entry, here[2]))
    found.sort(key=lambda each: each[0])
    beside = [(named[0], named[1]) for named in strangers]
    kept = _overrides_of(beside, overrides, None if known is not None else optim)
    for number, entry, skip in _entries_of(beside, optim, lr, kept, options):
        name, _, own = strangers[number]
        found.append((0, replace(entry, name=name, options=_merged(entry, own, kept, optim)), skip))
    return Plan(
        optim,
        tuple(entry for _, entry, skip in found if not skip),
        tuple(entry for _, entry, skip in found if skip),
        dict(options),
        lr,
    )


def _merged(
    entry: Entry, own: Mapping[str, Any], overrides: Overrides, optim: str
) -> dict[str, Any]:
    """An entry's options with those of its group. A user's override of lr wins over the group."""
    options = dict(entry.options)
    if own.get("rule", options["rule"]) != options["rule"]:
        options = {"rule": own["rule"], "lr": options["lr"]}
    said = dict(own)
    if any("lr" in overrides[target] for target in entry.overrides):
        said.pop("lr", None)
    elif "lr" in said and ("rule" in own or options["rule"] == rule_of_name(optim)):
        # Under a preset of several rules the factor leads from the common learning rate to
        # another rule's, and a trainer's groups know one learning rate alone.
        options.pop("lr_factor", None)
    return {**options, **said}


def _overrides_of(
    named: Sequence[tuple[str, Tensor]], overrides: Overrides, optim: str | None
) -> dict[str, Mapping[str, Any]]:
    """The overrides of weights that are in no model, by role or by their number.

    Raises:
        ConfigError: one matches nothing, if ``optim`` is given: then there are no other weights.
    """
    roles = {role_of(nn.Module(), "0", (), param, nn.Module()) for _, param in named}
    kept: dict[str, Mapping[str, Any]] = {}
    for target, changes in overrides.items():
        # Their names may hold dots, which say in a model which module a weight is in.
        numbers = [str(n) for n, (name, _) in enumerate(named) if fnmatchcase(name, target)]
        hits = [target] if target in roles else numbers
        kept.update({hit: {**kept.get(hit, {}), **changes} for hit in hits})
        if optim is not None and not hits:
            raise ConfigError(
                f"The override {target!r} matches no weight: the trainer passes weights without "
                f"their model, so roles come from shapes alone ({', '.join(sorted(roles))}). "
                f"Leave it out. {INSTEAD.format(optim=optim)}"
            )
    return kept


def _entries_of(
    named: Sequence[tuple[str, Tensor]],
    optim: str,
    lr: float | Tensor,
    overrides: Overrides,
    options: Mapping[str, Any],
) -> Iterator[tuple[int, Entry, bool]]:
    """(number, entry, is it skipped) of weights that are in no model; roles are by shape."""
    if not named:
        return
    holder = nn.Module()
    holder._parameters.update({str(n): param for n, (_, param) in enumerate(named)})  # type: ignore[misc]
    made = make_plan(holder, optim, lr, overrides=overrides, **options)
    for skip, entries in ((False, made.entries), (True, made.skipped)):
        yield from ((int(entry.name), entry, skip) for entry in entries)


@contextmanager
def thawed(params: Iterable[Tensor]) -> Iterator[None]:
    """Count frozen weights as trainable: a trainer that passes them may unfreeze them later."""
    frozen = [p for p in params if not p.requires_grad and p.is_floating_point() and p.is_leaf]
    for param in frozen:
        param.requires_grad_(True)
    try:
        yield
    finally:
        for param in frozen:
            param.requires_grad_(False)
