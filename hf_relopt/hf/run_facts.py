"""What a run is: model, optimizer, training, launch mode and machine, in numbers and words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_relopt.errors import RelOptError
from hf_relopt.hf import arguments, run_surroundings
from hf_relopt.hf.callbacks import unwrapped
from hf_relopt.hf.optimizer_words import (
    class_name,
    options_in_force,
    peak_lr_of,
    rule_words,
    rules_in_use,
)
from hf_relopt.lns.tensor import lns_of
from hf_relopt.plans.defaults import look_at
from hf_relopt.plans.plan import followed_lr, follows
from hf_relopt.sharding.layout import is_sharded

FORMAT = 1


def record_of(
    args: TrainingArguments,
    state: TrainerState,
    model: nn.Module,
    optimizer: Any,
    lr_scheduler: Any = None,
) -> dict[str, Any]:
    """What is known of a run, all but its clock and the model that it began with.

    Args:
        args: of the Trainer.
        state: of the Trainer; its steps and epochs are those that are done.
        model: that is trained.
        optimizer: as the Trainer has it; None before training.
        lr_scheduler: likewise.
    """
    return {
        "format": FORMAT,
        "model": _model(model),
        "optimizer": _optimizer(args, optimizer),
        "training": _training(args, state, model, optimizer, lr_scheduler),
        "launch": run_surroundings.launch(args),
        "hardware": run_surroundings.hardware(args),
        "versions": run_surroundings.versions(),
        "git": run_surroundings.git(),
        "command": run_surroundings.command(),
        "base_model": None,
    }


def base_of(model: nn.Module) -> dict[str, Any]:
    """The model that training begins with, as "base_model", "base_revision", "base_is_local".

    A configuration keeps the name that it was read from, also where the weights are new: they count
    as pretrained if they look trained, or if the model is in evaluation mode, in which
    from_pretrained leaves it.
    """
    adapters = getattr(model, "peft_config", None)
    named = next(
        (getattr(each, "base_model_name_or_path", None) for each in adapters.values()), None
    ) if isinstance(adapters, dict) else None  # fmt: skip
    inner = _transformer(model)
    config = getattr(inner, "config", None)
    name = named or getattr(config, "_name_or_path", None) or None
    if name and not named and model.training and not any(map(is_sharded, model.parameters())):
        try:
            name = name if look_at(inner).situation != "untrained" else None
        except RelOptError:  # a lazy module: nothing in it is pretrained
            name = None
    revision = getattr(config, "_commit_hash", None) if name else None
    name = name and os.fspath(name)
    local = os.path.isdir(name) if name else None
    return {"base_model": name, "base_revision": revision, "base_is_local": local}


def _transformer(model: nn.Module) -> nn.Module:
    """The Transformers model inside adapters, losses and wrappers."""
    base = getattr(model, "get_base_model", None)
    inner = base() if callable(base) else model
    if getattr(inner, "config", None) is not None:
        return inner
    held = (part for part in inner.modules() if hasattr(part, "from_pretrained"))
    return next((part for part in held if getattr(part, "config", None) is not None), inner)


def _model(model: nn.Module) -> dict[str, Any]:
    inner = _transformer(model)
    adapters = getattr(model, "peft_config", None)
    config = getattr(inner, "config", None)
    total, trainable = _sizes(model)
    return {
        "class": type(inner).__name__,
        "name_or_path": getattr(config, "_name_or_path", None) or None,
        "parameters": total,
        "trainable": trainable,
        "library": _library(model, inner),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "codes": _codes(inner),
        "labels": getattr(config, "num_labels", None) if _classifies(inner) else None,
        "adapter": [
            str(getattr(each.peft_type, "value", each.peft_type)) for each in adapters.values()
        ] if isinstance(adapters, dict) else None,
    }  # fmt: skip


def _library(model: nn.Module, inner: nn.Module) -> str | None:
    """The hub's name of the library that loads the model; None for a module of one's own."""
    if any(cls.__module__.startswith("sentence_transformers.") for cls in type(model).__mro__):
        return "sentence-transformers"
    if isinstance(getattr(model, "peft_config", None), dict):
        return "peft"
    return "transformers" if hasattr(inner, "from_pretrained") else None


def _classifies(model: nn.Module) -> bool:
    return "Classification" in type(model).__name__


def _sizes(model: nn.Module) -> tuple[int, int]:
    """(all parameters, those to train), where each packed weight counts its entries."""
    of_adapters = getattr(model, "get_nb_trainable_parameters", None)
    if callable(of_adapters):
        trainable, total = of_adapters()
        return int(total), int(trainable)
    count = getattr(model, "num_parameters", None)
    if callable(count):
        return int(count()), int(count(only_trainable=True))
    params = list(model.parameters())
    trained = sum(param.numel() for param in params if param.requires_grad)
    return sum(param.numel() for param in params), trained


def _optimizer(args: Any, optimizer: Any) -> dict[str, Any]:
    inner = unwrapped(optimizer)
    named = arguments.name_of(args)
    if optimizer is None:
        asked = str(getattr(args.optim, "value", args.optim))
        return {"name": asked, "words": [asked], "groups": [], "options": {}}
    # The arguments name one of ours only if it is ours that runs.
    rule = next(iter(rules_in_use(optimizer)), class_name(optimizer))
    name = (named or rule) if inner is not None else class_name(optimizer)
    return {
        "name": name,
        "words": rule_words(optimizer),
        "groups": [_group(group, optimizer) for group in optimizer.param_groups],
        "options": options_in_force(optimizer),
    }


def _group(group: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    ours = "rule" in group and bool(group["params"])
    return {
        "role": str(group.get("role", "")),
        "rule": group.get("rule"),
        "follows": follows(group["params"][0], group) if ours else class_name(optimizer),
        "lr": followed_lr(group),
        "tensors": len(group["params"]),
        "parameters": sum(param.numel() for param in group["params"]),
    }


def _training(
    args: Any, state: TrainerState, model: nn.Module, optimizer: Any, lr_scheduler: Any
) -> dict[str, Any]:
    schedule = _schedule(args, lr_scheduler)
    is_named = schedule == str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    peak = peak_lr_of(optimizer)
    return {
        "peak_lr": float(args.learning_rate if peak is None else peak),
        "schedule": schedule,
        "warmup_steps": args.get_warmup_steps(state.max_steps) if is_named else None,
        "max_steps": state.max_steps,
        "steps": state.global_step,
        "epochs": state.epoch,
        "per_device_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "sequences_per_step": _sequences_per_step(args),
        "precision": _precision(args, model),
        "seed": args.seed,
        "data_seed": args.data_seed,
    }


def _sequences_per_step(args: Any) -> int:
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def _schedule(args: Any, lr_scheduler: Any) -> str:
    """The schedule's name in the arguments, or the class of one that is not made from them."""
    named = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    inner = getattr(lr_scheduler, "scheduler", lr_scheduler)
    if inner is None:
        return named
    factors = getattr(inner, "lr_lambdas", None)
    if factors:
        homes = [getattr(getattr(f, "func", f), "__module__", "") for f in factors]
        return named if all("transformers" in str(home) for home in homes) else "LambdaLR"
    known = isinstance(inner, torch.optim.lr_scheduler.ReduceLROnPlateau)
    from_arguments = known and named == "reduce_lr_on_plateau"
    stock = type(inner).__module__.startswith("transformers.")
    return named if from_arguments or stock else type(inner).__name__


def _codes(model: nn.Module) -> str | None:
    """The format of weights in codes; None if there are none."""
    found = (lns_of(param) for param in model.parameters())
    return next((codes.form.name for codes in found if codes is not None), None)


def _precision(args: Any, model: nn.Module) -> str:
    weights = str(next(model.parameters()).dtype).removeprefix("torch.")
    codes = _codes(model)
    if codes is not None:
        weights = f"{codes}, beside {weights}"
    mixed = "bf16" if args.bf16 else "fp16" if args.fp16 else ""
    return f"{weights} weights, {mixed} mixed precision" if mixed else weights
