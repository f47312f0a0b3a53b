"""The optimizer that a Trainer really ran, in words for a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer

RULES = {
    "fromage": "Fromage: each weight tensor moves by a fixed fraction of its own norm "
    "([Bernstein et al., 2020](https://arxiv.org/abs/2002.03432))",
    "madam": "Madam: each weight is multiplied by a factor near one "
    "([Bernstein et al., 2020](https://arxiv.org/abs/2006.14560))",
}


def rules_in_use(trainer: Trainer) -> list[str]:
    """Names of the rules in use, most parameters first."""
    sizes: dict[str, int] = {}
    for group in getattr(trainer.optimizer, "param_groups", []):
        if "rule" in group:
            size = sum(p.numel() for p in group["params"])
            sizes[group["rule"]] = sizes.get(group["rule"], 0) + size
    return sorted(sizes, key=lambda rule: -sizes[rule])


def rule_words(trainer: Trainer) -> list[str]:
    """The rules in use in words, the first with its options; the class's name for others."""
    rules = rules_in_use(trainer)
    options = _options(trainer.optimizer)
    if not rules:
        return [f"{_class_name(trainer)}{options}"]
    words = [RULES.get(rule, rule) for rule in rules]
    return [words[0] + options, *words[1:]]


def _options(optimizer: Any) -> str:
    """The options of the largest group, without lists of weights and flags of torch's own."""
    groups = getattr(optimizer, "param_groups", [])
    if not groups:
        return ""
    largest = max(groups, key=lambda group: sum(p.numel() for p in group["params"]))
    hidden = {"params", "param_names", "role", "rule", "lr", "initial_lr", "fused", "foreach",
              "capturable", "differentiable", "maximize", "decoupled_weight_decay",
              "backend", "shapes_crc32"}  # fmt: skip
    shown = [
        f"{name} {value}"
        for name, value in largest.items()
        if name not in hidden and value is not None
    ]
    return f" ({', '.join(shown)})" if shown else ""


def _class_name(trainer: Trainer) -> str:
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if inner is None:
        return str(getattr(trainer.args.optim, "value", trainer.args.optim))
    return type(inner).__name__


def peak_rate(trainer: Trainer) -> float:
    """The learning rate that the schedule of most weights starts from."""
    groups = getattr(trainer.optimizer, "param_groups", [])
    if not groups:
        return trainer.args.learning_rate
    largest = max(groups, key=lambda group: sum(p.numel() for p in group["params"]))
    return float(largest.get("initial_lr", largest["lr"]))
