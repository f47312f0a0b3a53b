"""The learning rate in TrainingArguments: the one given, the one in force, and why.

The one in force is written back, so that logs and cards are correct. It must never count as given
by the user: the same arguments may serve another model, optimizer or trainer.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_relopt.hf import guards
from hf_relopt.hf.log import logger
from hf_relopt.plans.defaults import Look, default_for, look_at, why_default
from hf_relopt.plans.entries import OPTIMIZERS


class LrInForce(float):
    """A learning rate that hf_relopt wrote into arguments, with the one that the user gave.

    It stays in the arguments through copies, ``dataclasses.replace``, ``to_dict`` and pickles. A
    learning rate set by hand is a plain float, and so the user's. JSON has only plain numbers.

    Attributes:
        said: what the user gave; None for nothing. TRL makes its own arguments out of plain ones:
            the default of one class would look like one that was given to the other.
    """

    said: float | None

    def __new__(cls, lr: float, *said: float | None) -> Any:
        """A plain float without ``said``: searches cast a new value to the old one's type."""
        if not said:
            return float(lr)
        self = super().__new__(cls, lr)
        (self.said,) = said
        _let_yaml_write_it(cls)
        return self

    def __reduce__(self) -> tuple[Any, tuple[float, float | None]]:
        return LrInForce, (float(self), self.said)


class Choice(NamedTuple):
    """A learning rate, where it comes from in a few words, and whether somebody gave it."""

    lr: float
    why: str
    is_given: bool = True


def given_in(args: Any) -> float | None:
    """The learning rate that a user gave; None for nothing, or the default of the arguments."""
    lr = args.learning_rate
    said = lr.said if isinstance(lr, LrInForce) else lr
    return None if said == default_of(args) else said


def said_by(args: Any) -> float:
    """The learning rate of the arguments without hf_relopt: the one given, or their default."""
    given = given_in(args)
    return default_of(args) if given is None else given


def default_of(args: Any) -> float:
    """The class's own default: 5e-5 for TrainingArguments, 2e-5 for TRL's SFTConfig."""
    fields = {field.name: field for field in dataclasses.fields(args)}
    return float(fields["learning_rate"].default)  # type: ignore[arg-type]


def write_back(args: Any, lr: float) -> None:
    """Write the learning rate in force into the arguments, and remember the one they had."""
    args.learning_rate = LrInForce(lr, given_in(args))


def take_back(args: Any) -> None:
    """Restore the learning rate that the arguments had before ``write_back``."""
    if isinstance(args.learning_rate, LrInForce):
        args.learning_rate = said_by(args)


def choose(
    args: Any,
    name: str,
    look: Look | None,
    asked: float | None,
    steps: Callable[[], int | None] = lambda: None,
) -> Choice | None:
    """The learning rate for optimizer ``name``.

    One in optim_args wins; then one in ``args`` that is not its class's default; then ours.

    Args:
        look: at the model; None if there is none to look at.
        asked: the one in optim_args.
        steps: counts those of the run, or returns None. Called only if the default follows them.

    Returns:
        None if the default is wanted and ``look`` is None.
    """
    if asked is not None:
        return Choice(asked, "from optim_args")
    given = given_in(args)
    if given is not None:
        return Choice(given, "as given")
    if look is None:
        return None
    logger.debug(
        "%s: %s. A learning rate of %g cannot be distinguished from the default of the arguments; "
        "--optim_args lr=... forces one.",
        look.words,
        look.evidence,
        default_of(args),
    )
    follows = look.situation == "untrained" and OPTIMIZERS[name].lr_falls
    count = steps() if follows else None
    why = why_default(look, name, count)
    return Choice(default_for(look, name, count), f"since none was given{why}", False)


def look_as_rank_zero(model: nn.Module) -> Look:
    """One look for all ranks where only the first has read the weights.

    With Accelerate's cpu_ram_efficient_loading the others hold them on the meta device, and cannot
    see whether they were trained.
    """
    look = look_at(model)
    if not only_rank_zero_has_weights():
        return look
    seen: list[Any] = [look]
    torch.distributed.broadcast_object_list(seen, src=0)
    return seen[0]


def only_rank_zero_has_weights() -> bool:
    """Say whether the other ranks hold weights without numbers, for now."""
    loading = "ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return together and all(map(guards.is_set, loading))


def _let_yaml_write_it(cls: type) -> None:
    """Tell yaml, which looks at the exact type, that this is a float: users dump arguments."""
    yaml = sys.modules.get("yaml")
    for name in ("SafeDumper", "CSafeDumper", "Dumper", "CDumper"):
        dumper = getattr(yaml, name, None)
        if dumper is not None and cls not in dumper.yaml_representers:
            dumper.add_representer(cls, lambda how, value: how.represent_float(float(value)))
