"""What TrainingArguments mean for our optimizers: checked when they are built, explained once."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from torch import nn

from hf_relopt.backends.backend import backend_of
from hf_relopt.errors import ConfigError, UnsupportedSetup
from hf_relopt.hf import guards, learning_rate, optim_args
from hf_relopt.hf.log import logger, say_once
from hf_relopt.optim.in_backward import REPLICAS
from hf_relopt.options.checks import check_options
from hf_relopt.plans.entries import OPTIMIZERS, entry_of_rule, in_place_of_decay, rule_of_name


def name_of(args: Any) -> str | None:
    """The name in ``args.optim`` if it is one of ours, else None."""
    name = str(getattr(args.optim, "value", args.optim))
    return name if name in OPTIMIZERS else None


def mark_or_take_back(args: Any) -> None:
    """Remember whether a learning rate was given; under other optimizers remove ours."""
    if "learning_rate" not in vars(args):
        return  # the arguments are only being made
    if name_of(args) is None:
        learning_rate.take_back(args)
    elif learning_rate.given_in(args) is None:
        learning_rate.write_back(args, float(args.learning_rate))


def check(args: Any) -> None:
    """Check ``args`` as soon as they exist; does nothing for other optimizers.

    Raises:
        ConfigError: malformed optim_args, a learning rate out of range, a non-zero weight_decay.
        UnsupportedSetup: a launch mode that would not be exact.
    """
    name = name_of(args)
    if name is None:
        return
    optim_args.parse(name, args.optim_args)
    check_options(rule_of_name(name), {"lr": args.learning_rate})
    if args.weight_decay:
        raise ConfigError(
            f"weight_decay is {args.weight_decay!r}; {name} takes only 0: it keeps the norms of "
            f"weights by itself. Drop --weight_decay{in_place_of_decay(name)}."
        )
    guards.check_arguments(args)


def check_in_backward(
    args: Any, name: str, groups: list[dict[str, Any]], model: nn.Module | None
) -> None:
    """Refuse what needs the gradients after the backward pass, where some are dropped inside it.

    Args:
        model: None if it is unknown.

    Raises:
        UnsupportedSetup: DDP.
        ConfigError: gradient accumulation, clipping that would matter, or fp16's loss scaling.
    """
    if not any(group.get("step_in_backward") for group in groups):
        return
    if model is not None and guards.every_process_has_all_weights(model):
        raise UnsupportedSetup(REPLICAS)
    accumulated, largest = args.gradient_accumulation_steps, args.max_grad_norm
    if accumulated > 1:
        raise ConfigError(
            f"gradient_accumulation_steps is {accumulated} with step_in_backward, which keeps no "
            "gradient to add the next one to. Use 1 with a larger per_device_train_batch_size, or "
            "leave step_in_backward out."
        )
    if args.fp16:
        raise ConfigError(
            "fp16 is True with step_in_backward: gradients would be stepped before their scale is "
            "taken out of them. Use bf16, or leave step_in_backward out."
        )
    if largest and not clipping_is_pointless(groups):
        raise ConfigError(
            f"max_grad_norm is {largest:g} with step_in_backward, which knows no norm of all "
            f"gradients, and under {name} clipping would matter. Use max_grad_norm=0, or leave "
            "step_in_backward out."
        )


def check_device(args: Any, groups: list[dict[str, Any]]) -> None:
    """Refuse a backend that cannot step weights where they will be.

    Raises:
        ConfigError: backend="triton" where the run is on a CPU.
    """
    if any([group["backend"] == "triton" for group in groups]):
        backend_of("triton", args.device)


def explain(args: Any, name: str, groups: list[dict[str, Any]]) -> None:
    """Log one line for each argument that works differently than for AdamW."""
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if schedule.startswith("constant"):
        say_once(
            logging.WARNING,
            f"lr_scheduler_type is {schedule}: steps under {name} never get smaller by "
            "themselves, so the loss will stop falling. Use linear or cosine.",
        )
    unread = _unread(args)
    if unread:
        decay = OPTIMIZERS[name].decay
        own = f"Its own decay is --optim_args {decay}. " if decay else ""
        say_once(
            logging.WARNING,
            f"{', '.join(unread)}: {name} does not read "
            f"{'this' if len(unread) == 1 else 'these'}, drop "
            f"{'it' if len(unread) == 1 else 'them'}. {own}For weights that follow AdamW, "
            "set betas and eps in an override (vector.betas=0.9;0.95).",
        )
    if args.max_grad_norm > 0 and clipping_is_pointless(groups):
        say_once(logging.INFO, f"max_grad_norm changes nothing under {name}.")
        logger.debug(
            "Each gradient is divided by its own norm. RelOptTrainer skips clipping. The stock "
            "Trainer clips, so one NaN gradient stops every tensor for that step (--max_grad_norm "
            "0 avoids this)."
        )


def _unread(args: Any) -> list[str]:
    """AdamW's and GaLore's arguments that were given, as "adam_beta2 0.95"."""
    fields = {field.name: field for field in dataclasses.fields(args)}
    names = ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules")
    given = {name: getattr(args, name) for name in names if name in fields}
    return [f"{n} {value}" for n, value in given.items() if value != fields[n].default]


def clipping_is_pointless(groups: list[dict[str, Any]]) -> bool:
    """True if no group's rule depends on the norm of gradients, now or later."""
    return all(
        (entry := entry_of_rule(group.get("rule", ""))) is not None
        and entry.divides_by_norm
        and group.get("direction", "gradient") == "gradient"
        for group in groups
    )
