"""What TrainingArguments mean for our optimizers: checked when they are built, explained once."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from hf_relopt.errors import ConfigError
from hf_relopt.hf import guards, optim_args
from hf_relopt.hf.first_look import first_look
from hf_relopt.hf.log import logger
from hf_relopt.optim.create import OPTIMIZERS, default_lr
from hf_relopt.optim.options import check_options
from hf_relopt.presets import rule_of_name

# In the messages about weight decay. Presets are bounded as they stand, embeddings closely.
_BOUNDS = {"fromage": "p_bound=1.0", "madam": "p_scale=3.0"}


def name_of(args: Any) -> str | None:
    """The name in ``args.optim`` if it is one of ours, else None."""
    name = str(getattr(args.optim, "value", args.optim))
    return name if name in OPTIMIZERS else None


def check(args: Any) -> None:
    """Refuse what can be refused as soon as ``args`` exist; silent for other optimizers.

    Raises:
        ConfigError: malformed optim_args, a rate out of range, a non-zero weight_decay.
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
            f"weights by itself. Drop --weight_decay, and use --optim_args "
            f"{_BOUNDS.get(name, 'matrix.p_bound=2.0')} to bound the weights."
        )
    guards.check_arguments(args)


def resolve_lr(args: Any, name: str, model: nn.Module, given: float | None) -> float:
    """The rate for optimizer ``name``; written back into ``args``: logs and cards are to be true.

    A rate in optim_args wins; then one in ``args`` that is not its class's default; then ours.
    """
    default = default_of(args)
    if given is not None:
        lr, why = given, "from optim_args"
    elif args.learning_rate != default:
        lr, why = args.learning_rate, "as given"
    else:
        lr, evidence = _as_rank_zero_sees_it(*default_lr(model, name, first_look(model)))
        why = (
            f"since none was given and {evidence}; a rate of {default:g} cannot be told from the "
            "default of the arguments, --optim_args lr=... forces one"
        )
    args.learning_rate = lr
    logger.info("learning rate %g, %s.", lr, why)
    return lr


def _as_rank_zero_sees_it(lr: float, evidence: str) -> tuple[float, str]:
    """One rate for all ranks where only the first has read the weights.

    With Accelerate's cpu_ram_efficient_loading the others hold them on the meta device, and cannot
    see whether they were trained.
    """
    loading = "ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"
    if not all(map(guards.is_set, loading)):
        return lr, evidence
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return lr, evidence
    said: list[Any] = [lr, evidence]
    torch.distributed.broadcast_object_list(said, src=0)
    return said[0], said[1]


def default_of(args: Any) -> float:
    """The class's own default rate: 5e-5 for TrainingArguments, 2e-5 for TRL's SFTConfig."""
    fields = {field.name: field for field in dataclasses.fields(args)}
    return float(fields["learning_rate"].default)  # type: ignore[arg-type]


def explain(args: Any, name: str, groups: list[dict[str, Any]]) -> None:
    """One line each on a schedule or a clipping that does not do what it does for AdamW."""
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if schedule.startswith("constant"):
        logger.warning(
            "lr_scheduler_type is %s: the relative step never gets smaller by itself under %s, so "
            "the loss will hover. Use linear or cosine.",
            schedule,
            name,
        )
    if args.max_grad_norm > 0 and clipping_is_pointless(groups):
        logger.info(
            "max_grad_norm %g changes nothing: each gradient is divided by its own norm. "
            "RelOptTrainer leaves clipping out; the stock Trainer runs it, and one NaN then stops "
            "every tensor for that step (--max_grad_norm 0 avoids this).",
            args.max_grad_norm,
        )


def clipping_is_pointless(groups: list[dict[str, Any]]) -> bool:
    """True if no group's rule looks at the size of gradients, now or later."""
    return all(
        group.get("rule") == "fromage" and group.get("direction", "gradient") == "gradient"
        for group in groups
    )
