"""``--optim_args``: text such as "p_bound=1.0, vector.rule=adamw, *.bias.skip=true", typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_relopt.errors import ConfigError
from hf_relopt.optim.create import check_override, check_request, require_option, rule_of_override
from hf_relopt.options.checks import bad_value, parse_value
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans.entries import OPTIMIZERS, rule_of_name


@dataclass(frozen=True)
class OptimArgs:
    """What ``--optim_args`` says: a learning rate, options, and overrides for the plan."""

    lr: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


def parse(optim: str, text: str | None) -> OptimArgs:
    """Read ``--optim_args`` for ``optim``.

    Args:
        optim: a name in OPTIMIZERS, such as "fromage".
        text: name=value pairs between commas. A name with a dot is an override: what stands before
            the last dot is a role or a name pattern, as in ``vector.lr=1e-3``.

    Raises:
        ConfigError: a malformed pair, an unknown option, or a value of the wrong kind or range.
    """
    pairs, rule = _pairs(optim, text), rule_of_name(optim)
    own = {name: value for name, value in pairs if "." not in name}
    for name in own:
        require_option(optim, name)
    options = {name: parse_value(rule, name, value) for name, value in own.items()}
    check_request(optim, {name: value for name, value in options.items() if name != "lr"})
    nested: dict[str, dict[str, str]] = {}
    for name, value in pairs:
        target, dot, option = name.rpartition(".")
        if dot:
            nested.setdefault(target, {})[option] = value
    overrides = {target: _override(optim, target, given) for target, given in nested.items()}
    return OptimArgs(options.pop("lr", None), options, overrides)


def _pairs(optim: str, text: str | None) -> list[tuple[str, str]]:
    if text is None or text == "":
        return []
    if not isinstance(text, str):
        raise ConfigError(
            f"optim_args is {text!r}; it takes text, as in '{_example(optim)}'. Write the "
            "options in one string."
        )
    pairs: list[tuple[str, str]] = []
    for part in text.replace(" ", "").split(","):
        name, equals, value = part.partition("=")
        malformed = not (name and equals and value) or "=" in value
        if malformed or "" in name.split("."):
            raise ConfigError(
                f"optim_args is {text!r}, and {part!r} in it is not of the form name=value. "
                f"{optim} takes pairs between commas, as in '{_example(optim)}'."
            )
        if name in dict(pairs):
            raise ConfigError(f"optim_args is {text!r}, and {name} is in it twice. Give it once.")
        pairs.append((name, value))
    return pairs


def _override(optim: str, target: str, given: dict[str, str]) -> dict[str, Any]:
    rule = rule_of_override(optim, target, given)
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name == "rule":
            changes[name] = value
        elif name == "skip":
            maximize = OPTIONS[rule]["maximize"]
            try:
                changes[name] = maximize.parse(value)
            except KeyError:
                raise bad_value(rule, f"{target}.skip", value, maximize) from None
        else:
            changes[name] = parse_value(rule, name, value)
    check_override(optim, target, changes)
    return changes


def _example(optim: str) -> str:
    return f"{OPTIMIZERS[optim].bound or 'seed=3'},vector.lr=0.001"
