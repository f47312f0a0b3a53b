"""Which Trainer some arguments belong to, what its model looked like, and what it resumes from.

Many trainers ask for an optimizer without passing the model, and a resumed one has loaded its
checkpoint by then, so that the model would look pretrained. So each Trainer is remembered when it
is made.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from transformers.trainer_utils import has_length

from hf_relopt.hf import arguments, learning_rate, optim_args
from hf_relopt.hf.checkpoints import holds_weights_alone, weights_alone_error
from hf_relopt.hf.learning_rate import look_as_rank_zero
from hf_relopt.plans.defaults import Look
from hf_relopt.sharding.layout import is_sharded

# Set by `hf-relopt run --telemetry`: every Trainer of the command measures its steps, and records
# what run it is.
TELEMETRY = "HF_RELOPT_TELEMETRY"
# Trainer -> (the model it was looked at with, what was seen).
_looks: weakref.WeakKeyDictionary[Any, tuple[weakref.ref[nn.Module], Look]] = (
    weakref.WeakKeyDictionary()
)
_trainers: weakref.WeakSet[Any] = weakref.WeakSet()


def remember(trainer: Any) -> None:
    """Remember a Trainer that has just been made, settle its learning rate, see to its telemetry.

    Trainers with param groups of their own read it from their arguments.
    """
    _trainers.add(trainer)
    if os.environ.get(TELEMETRY, "0") != "0":
        from hf_relopt.hf.callbacks import RelOptCallback
        from hf_relopt.hf.run_record import RunRecord

        RelOptCallback.add_to(trainer, by_default=False)
        RunRecord.add_to(trainer)
    args: Any = getattr(trainer, "args", None)
    model = getattr(trainer, "model", None)
    if getattr(args, "optim", None) is None or not isinstance(model, nn.Module):
        return
    name = arguments.name_of(args)
    if name is None or not _can_be_looked_at_alone(model):
        return
    asked = optim_args.parse(name, args.optim_args).lr
    choice = learning_rate.choose(args, name, first_look(trainer), asked, lambda: steps_of(trainer))
    if choice is not None:
        learning_rate.write_back(args, choice.lr)


def handlers_with(callback: Any) -> list[Any]:
    """The callback handlers of Trainers that have this very callback."""
    handlers = [getattr(trainer, "callback_handler", None) for trainer in _trainers]
    return [
        handler
        for handler in handlers
        if handler is not None and any(each is callback for each in handler.callbacks)
    ]


def check_resuming(
    trainer: Any, resume_from_checkpoint: str, model: nn.Module | None = None
) -> None:
    """Refuse to resume one of our optimizers from weights alone, which starts the schedule anew.

    Raises:
        FormatError: as above, unless a RelOptTrainer was told to discard the optimizer's state.
    """
    from hf_relopt.hf.callbacks import unwrapped

    ours = unwrapped(trainer.optimizer) is not None or (
        trainer.optimizer is None and arguments.name_of(trainer.args) is not None
    )
    discards = getattr(trainer, "_discard", False)
    if ours and not discards and holds_weights_alone(resume_from_checkpoint):
        raise weights_alone_error(resume_from_checkpoint)


def _can_be_looked_at_alone(model: nn.Module) -> bool:
    """False where other ranks would have to take part, who may not make a Trainer just now."""
    shards = any(is_sharded(param) or is_lazy(param) for param in model.parameters())
    return not shards and not learning_rate.only_rank_zero_has_weights()


def trainer_of(args: Any, model: nn.Module | None) -> Any:
    """The Trainer that asks for an optimizer; None if it is unknown.

    Args:
        args: its arguments. Several trainers may share them.
        model: what it passed, or None. It may be a part of the trainer's model, or hold it as the
            losses of sentence-transformers do.
    """
    sharing = [job for job in _trainers if getattr(job, "args", None) is args]
    holding = [job for job in sharing if model is not None and _belong_together(job.model, model)]
    training = [job for job in sharing if getattr(job, "is_in_train", False)]
    # Two at once cannot be told apart; one alone, or the one that trains, can.
    return next((each[0] for each in (holding, training, sharing) if len(each) == 1), None)


def first_look(trainer: Any) -> Look:
    """What the Trainer's model looked like before this run changed it.

    A model that ``model_init`` makes anew is looked at anew, but not once a checkpoint is loaded.
    """
    known = _looks.get(trainer)
    if known is not None and (known[0]() is trainer.model or is_resuming(trainer)):
        return known[1]
    look = look_as_rank_zero(trainer.model)
    _looks[trainer] = weakref.ref(trainer.model), look
    return look


def steps_of(trainer: Any) -> int | None:
    """The steps that the Trainer's arguments ask for; None if nobody knows before it trains.

    Of epochs they are counted from the data as the Trainer was given it: the same whenever one
    asks, and an estimate where its loader filters or packs.
    """
    args, data = trainer.args, getattr(trainer, "train_dataset", None)
    if args.max_steps > 0:
        return int(args.max_steps)
    # sentence-transformers takes a dict of them, by name. Other dicts are data by themselves.
    parts: list[Any] = [data]
    if isinstance(data, Mapping) and all(isinstance(name, str) for name in data):
        parts = list(data.values())
    if not all(map(has_length, parts)):
        return None
    try:
        batches = -(-sum(map(len, parts)) // trainer.get_total_train_batch_size(args))
        return max(1, math.ceil(batches * args.num_train_epochs))
    except Exception:
        # A batch of nothing, epochs without end, or a method that needs what a subclass has not set
        # yet: whoever trains hears of it then, and others never.
        return None


def is_resuming(trainer: Any) -> bool:
    """Has the Trainer read a checkpoint's place in the run? Its weights are loaded then, too."""
    return getattr(getattr(trainer, "state", None), "global_step", 0) > 0


def _belong_together(one: Any, other: nn.Module) -> bool:
    if not isinstance(one, nn.Module):
        return False
    return any(part is one for part in other.modules()) or any(
        part is other for part in one.modules()
    )
