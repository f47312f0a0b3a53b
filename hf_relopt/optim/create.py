"""Make a plan and an optimizer from a model and the optimizer's name."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from hf_relopt.errors import ConfigError
from hf_relopt.optim.base import RelativeOptimizer
from hf_relopt.options.checks import check_options, check_together, unknown_option
from hf_relopt.options.method import OF_MATRICES, check_matrices, has_sphere, no_radius
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans import defaults
from hf_relopt.plans.directions import READ_BY, read_by
from hf_relopt.plans.entries import OPTIMIZERS, preset_of, rule_of_name, rules_of_name
from hf_relopt.plans.lazy_weights import require_shapes
from hf_relopt.plans.plan import Entry, Overrides, Plan, build
from hf_relopt.plans.roles import ROLES, steps_as_vector
from hf_relopt.rules.rule import RULES


def default_lr(model: nn.Module, optim: str, steps: int | None = None) -> tuple[float, str]:
    """The default learning rate of ``model`` in a run of ``steps``, and the reason for it."""
    look = defaults.look_at(model)
    return defaults.default_for(look, optim, steps), f"{look.words}: {look.evidence}"


def plan(
    model: nn.Module,
    optim: str,
    lr: float | Tensor | None = None,
    *,
    overrides: Overrides | None = None,
    num_training_steps: int | None = None,
    **options: Any,
) -> Plan:
    """Show the rule, learning rate and options that each trainable weight would get.

    Args:
        model: the model to train; tied weights count once, frozen ones not at all.
        optim: "fromage", "madam", or a preset: "fromage_spectral", "fromage_momentum",
            "fromage_sinkhorn", "fromage_factored", "muonh", "adamh".
        lr: learning rate: the relative length of a step, 0 <= lr < 1. None: 0.03 for adapters such
            as LoRA (0.1 for prompts and VeRA), 0.001 if the model looks pretrained, else 0.01
            (presets: 0.02, or 0.06 under fromage_sinkhorn and fromage_factored). Other trained
            weights of a model with adapters get 0.001 at most, except a task head.
        num_training_steps: steps of the run, at least 1, of the optimizer. Where none is given,
            ``lr`` of "fromage_spectral" from scratch follows it: 0.02 for 2,000, and from 0.04 for
            230 and less down to 0.01 for 17,000 and more. Nothing else does.
        overrides: role (matrix, embedding, head, conv, lora, vector, scalar) or name pattern ->
            {"lr": ..., "rule": "fromage" | "madam" | "adamw", "skip": True, or an option}.
        options: the optimizer's options, see ``Fromage`` and ``Madam``. They win over a preset's,
            for every weight that follows the optimizer's rule.

    Returns:
        The plan; ``print`` shows it as a table.

    Raises:
        ConfigError: an unknown name, a bad option, or an override that matches nothing.
    """
    check_name(optim)
    _require_model(model)
    rule = rule_of_name(optim)
    for name in options:
        require_option(optim, name)
        if name == "lr":
            raise unknown_option(rule, name)
    require_shapes(model)
    _check_steps(num_training_steps)
    lr = default_lr(model, optim, num_training_steps)[0] if lr is None else lr
    check_options(rule, {**options, "lr": lr})
    check_request(optim, options)
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(
            f"overrides is {overrides!r}. Pass a dict of roles or patterns over names with a dict "
            "of options each, as in {'vector': {'lr': 0.001}}."
        )
    for target, changes in (overrides or {}).items():
        check_override(optim, target, changes)
    preset = preset_of(optim)
    chosen = build(model, optim, lr, overrides=overrides, options=options, preset=preset)
    of_matrices: list[dict[str, Any]] = []
    directions: set[str] = set()
    for entry in chosen.entries:
        own, named = chosen.options_of(entry), [(entry.name, entry.param)]
        _refuse_unread(optim, entry, overrides or {})
        # The plan has gathered what a rank cannot see of its own shard.
        if entry.zero_start and has_sphere(own, entry.param):
            raise no_radius(entry.param, entry.name)
        check_together(own["rule"], {**_defaults(own["rule"]), **own, "params": named})
        if own.get("direction") in OF_MATRICES:
            of_matrices.append({**own, "params": [entry.param]})
        # Vectors read no option of a direction.
        if "direction" in own and not steps_as_vector(own, entry.param):
            directions.add(own["direction"])
    if preset is not None:
        _refuse_without_reader(optim, options, directions)
    # A preset gives each weight what suits it: where no matrix is trained, none is missed.
    if of_matrices and preset is None:
        check_matrices(of_matrices)
    return chosen


def create_optimizer(
    model: nn.Module,
    optim: str,
    lr: float | Tensor | None = None,
    *,
    overrides: Overrides | None = None,
    num_training_steps: int | None = None,
    **options: Any,
) -> RelativeOptimizer:
    """Make the optimizer of ``model`` for a custom training loop, with or without Accelerate.

    Args:
        model: the model to train; tied weights count once, frozen ones not at all.
        optim: "fromage", "madam", or a preset: "fromage_spectral", "fromage_momentum",
            "fromage_sinkhorn", "fromage_factored", "muonh", "adamh".
        lr: learning rate: the relative length of a step, 0 <= lr < 1. None: chosen from the model,
            as for ``plan``.
        num_training_steps: steps of the run, which the default of ``lr`` may follow, as for
            ``plan``. A Trainer knows it by itself.
        overrides: options by role or name pattern, as for ``plan``.
        options: the optimizer's options, see ``Fromage`` and ``Madam``.

    Returns:
        A ``Fromage`` or a ``Madam``; ``print`` shows its plan. A warning is logged for a learning
        rate that would train nothing, such as AdamW's.

    Raises:
        ConfigError: an unknown name, a bad option, an override that matches nothing, or a model
            without trainable weights.
    """
    chosen = plan(
        model, optim, lr, overrides=overrides, num_training_steps=num_training_steps, **options
    )
    look = functools.partial(defaults.look_at, model)
    given = lr is not None
    for remark in defaults.remarks(chosen, overrides, lr_is_given=given, look=look):
        defaults.warn_once(remark)
    return from_plan(chosen)


def from_plan(chosen: Plan) -> RelativeOptimizer:
    """Make the optimizer of the plan ``chosen``.

    Groups that are added later get its learning rate, and the options of weights without a special
    role.
    """
    made: RelativeOptimizer = OPTIMIZERS[chosen.optim].load()(chosen.groups, **chosen.options)
    preset = preset_of(chosen.optim)
    own = preset.options_of("matrix", chosen.options) if preset else {}
    made.defaults.update(own, lr=chosen.lr, **chosen.options)
    return made


def check_name(optim: str) -> None:
    """Raise ConfigError unless ``optim`` is one of ours."""
    if not isinstance(optim, str) or optim not in OPTIMIZERS:
        near = difflib.get_close_matches(str(optim), OPTIMIZERS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Use one of these."
        raise ConfigError(f"optim is {optim!r}; hf_relopt has {', '.join(OPTIMIZERS)}. {hint}")


def _require_model(model: Any) -> None:
    """Raise ConfigError for parameters in place of the model that holds them."""
    if isinstance(model, nn.Module):
        return
    raise ConfigError(
        f"model is of type {type(model).__name__}; a plan needs the model, whose modules show "
        "what each weight is for. Pass the model (torch.nn.Module) in place of "
        "model.parameters(), and freeze the weights that are not to be trained. For parameters "
        "without a plan, use Fromage(params) or Madam(params)."
    )


def _check_steps(steps: Any) -> None:
    """Raise ConfigError for what is no number of steps."""
    if steps is None or (isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1):
        return
    raise ConfigError(
        f"num_training_steps is {steps!r}; it takes the optimizer's steps in the whole run, an "
        "integer of at least 1: batches of all epochs over gradient_accumulation_steps. Leave it "
        "out if nobody knows."
    )


def check_request(optim: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError if options contradict each other for some weight, whatever the model."""
    preset, rule = preset_of(optim), rule_of_name(optim)
    common = {**_defaults(rule), "params": [], "lr": 0.0}
    if preset is None:
        check_together(rule, {**common, **options})
        return
    directions = set()
    for role in ("matrix", *preset.roles):
        if preset.rule_of(role) != rule:
            continue
        own = preset.options_of(role, options)
        direction = options.get("direction", own["direction"])
        directions.add(direction)
        check_together(rule, {**common, **own, **read_by(direction, options)})
    _refuse_without_reader(optim, options, directions)


def _refuse_without_reader(
    optim: str, options: Mapping[str, Any], directions: Collection[str]
) -> None:
    """Options that are given for all weights are for those that read them, and some have to."""
    for name, readers in READ_BY.items():
        if directions and options.get(name) is not None and not set(readers) & set(directions):
            raise ConfigError(
                f"{name} is {options[name]!r}, which nothing would read: directions here are "
                f"{', '.join(map(repr, sorted(directions)))} under {optim}, and those that read it "
                f"are {', '.join(map(repr, readers))}. Leave it out."
            )


def require_option(optim: str, name: str) -> None:
    """Raise ConfigError unless ``name`` is an option for all weights of the optimizer's rule."""
    rule, preset = rule_of_name(optim), preset_of(optim)
    if name in OPTIONS[rule]:
        return
    owner = next((each for each in rules_of_name(optim) if name in OPTIONS[each]), None)
    if owner is None or preset is None:
        raise unknown_option(rule, name)
    roles = [role for role in ROLES if preset.rule_of(role) == owner]
    raise ConfigError(
        f"{name} is an option of {owner}, which {optim} gives to the roles {', '.join(roles)}; "
        f"options for all weights are those of {rule}. Set it for a role, as in {roles[0]}.{name}."
    )


def _defaults(rule: str) -> dict[str, Any]:
    return {name: option.default for name, option in OPTIONS[rule].items()}


def check_override(optim: str, target: str, changes: Mapping[str, Any]) -> None:
    """Raise ConfigError unless every key of an override is an option of the rule it leads to."""
    if not isinstance(target, str) or not isinstance(changes, Mapping):
        raise ConfigError(
            f"The override {target!r} is {changes!r}. Overrides are a role or a pattern over names "
            "with a dict of options, as in {'vector': {'lr': 0.001}}."
        )
    rule = rule_of_override(optim, target, changes)
    for name, value in changes.items():
        if name == "skip" and not isinstance(value, bool):
            raise ConfigError(
                f"skip is {value!r} in the override {target!r}; it takes True or False."
            )
        if name not in ("rule", "skip") and name not in OPTIONS[rule]:
            raise unknown_option(rule, name, {*OPTIONS[rule], "rule", "skip"})
    check_options(rule, changes)


def rule_of_override(optim: str, target: str, changes: Mapping[str, Any]) -> str:
    """The rule whose options an override sets, as far as it is known without the model.

    A preset with several rules gives one to each role. Where its own rule lacks one of the options,
    the weights must follow another that has it, which the plan checks.

    Raises:
        ConfigError: the override asks for a rule that does not exist.
    """
    if "rule" not in changes:
        rules = rules_of_name(optim)
        fits = (r for r in rules if all(name in OPTIONS[r] or name == "skip" for name in changes))
        return next(fits, rules[0])
    rule = changes["rule"]
    if not isinstance(rule, str) or rule not in RULES:
        raise ConfigError(
            f"The override {target!r} asks for rule {rule!r}; the rules are {', '.join(RULES)}."
        )
    return rule


def _refuse_unread(optim: str, entry: Entry, overrides: Overrides) -> None:
    """Refuse an override's options that the rule of its weight does not have."""
    rule = entry.options["rule"]
    for target in entry.overrides:
        for name in overrides[target]:
            if name in OPTIONS[rule] or name in ("rule", "skip"):
                continue
            owners = [each for each, options in OPTIONS.items() if name in options]
            raise ConfigError(
                f"The override {target!r} sets {name} for {entry.name}, which follows {rule} under "
                f"{optim}; {name} belongs to {' and '.join(owners)}. Leave {target}.{name} out, or "
                f"give these weights a rule that reads it, as in {target}.rule={owners[0]}."
            )
