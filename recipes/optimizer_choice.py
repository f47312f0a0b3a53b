"""Check --optim and --optim_args on the model before a run begins."""

from __future__ import annotations

import torch
from one_clear_message import blamed_on
from recipe_arguments import RELATIVE_OPTIMIZERS, optimizer_name
from transformers import Trainer, TrainingArguments

from hf_relopt import plan
from hf_relopt.errors import ConfigError
from hf_relopt.hf import optim_args

# Values of which every optimizer that reads an option at all makes something of at least one.
_PROBES = ("1", "0.1234567", "true", "false", "none")


def check_optimizer(args: TrainingArguments, model: torch.nn.Module) -> None:
    """Check --optim and --optim_args on the model before a run folder is changed.

    Raises:
        ConfigError: if they do not make an optimizer, or if the Trainer would not read an option.
    """
    name = optimizer_name(args)
    if name in RELATIVE_OPTIMIZERS:
        said = optim_args.parse(name, args.optim_args)
        plan(model, name, args.learning_rate, overrides=said.overrides, **said.options)
        return
    with blamed_on(f"--optim {name} cannot be built", "Check --optim and --optim_args."):
        maker, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if isinstance(maker, type) and issubclass(maker, torch.optim.Optimizer):
            options.setdefault("params", list(model.parameters()))
            maker(**options)
    for piece in filter(None, (args.optim_args or "").replace(" ", "").split(",")):
        key, _, value = piece.partition("=")
        if not _is_read(args, model, key, value):
            raise ConfigError(
                f"--optim {name} does not read the option {key!r} from --optim_args. Leave it "
                "out; AdamW's options are --adam_beta1, --adam_beta2, --adam_epsilon and "
                "--weight_decay."
            )


def _is_read(args: TrainingArguments, model: torch.nn.Module, key: str, value: str) -> bool:
    """Whether the Trainer makes anything of an option: it passes over those it does not know."""
    without = _options(args, model, None)
    for probe in (value, *_PROBES):
        try:
            if _options(args, model, f"{key}={probe}") != without:
                return True
        except Exception:  # it was read, and the probe is of the wrong kind
            return True
    return False


def _options(args: TrainingArguments, model: torch.nn.Module, text: str | None) -> str:
    maker, options = Trainer.get_optimizer_cls_and_kwargs(_Said(args, text), model)
    return repr((maker, {name: value for name, value in options.items() if name != "params"}))


class _Said:
    """Training arguments with another optim_args, without their checks and side effects."""

    def __init__(self, args: TrainingArguments, text: str | None) -> None:
        self._args = args
        self.optim_args = text

    def __getattr__(self, name: str) -> object:
        return getattr(self._args, name)
