"""What a user is told of an optimizer, at the moment when it is true.

A resumed run has the checkpoint's learning rate and options, which are there only once the
optimizer's state is loaded: what was chosen before that would be the first thing to be read, and
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import TrainerCallback

from hf_relopt.groups import Plan, peak_lr
from hf_relopt.hf import learning_rate
from hf_relopt.hf.learning_rate import Choice
from hf_relopt.hf.log import logger
from hf_relopt.optim.base import RelativeOptimizer
from hf_relopt.optim.options import OPTIONS


@dataclass
class Announcement:
    """The learning rate and the plan of one optimizer, said once.

    Args:
        args: TrainingArguments, for the learning rate that is in force after a resume.
        chosen: the plan; see :func:`light`.
        choice: its learning rate, and why.
        leader: number of a param group that follows ``choice``; None if all have their own.
        is_made: there is nothing to say any more.
    """

    args: Any
    chosen: Plan
    choice: Choice
    leader: int | None
    is_made: bool = False

    def make(self) -> None:
        """Say what was chosen, unless it was said or the checkpoint's was."""
        if not self.is_made:
            self.is_made = True
            logger.info("learning rate %g, %s.", self.choice.lr, self.choice.why)
            logger.info("%s", self.chosen)

    def correct(self, optimizer: torch.optim.Optimizer) -> None:
        """A state was loaded: say what is in force now, and let the arguments say so."""
        # Accelerate takes a fresh optimizer's state out and puts it back, to place it on a device.
        if not optimizer.state:
            return
        groups = optimizer.param_groups
        if self.leader is not None:
            lr = peak_lr(groups[self.leader])
            asked = learning_rate.given_in(self.args)
            unused = f" (not {asked:g}, as given)" if asked not in (None, lr) else ""
            logger.info("resumed: learning rate %g, from the checkpoint%s.", lr, unused)
            learning_rate.write_back(self.args, lr)
        if not self.is_made:
            self.is_made = True
            logger.info("%s", in_force(self.chosen, groups))


class AnnounceAtBegin(TrainerCallback):
    """Makes an announcement that waited for a state which was not loaded after all."""

    def __init__(self, waiting: Announcement) -> None:
        self.waiting = waiting

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint is read by now."""
        self.waiting.make()


def announce(waiting: Announcement, optimizer: RelativeOptimizer, resuming: Any) -> None:
    """Announce an optimizer now, or when a checkpoint has been read.

    Args:
        resuming: the Trainer, if it is about to load a checkpoint; else None.
    """
    optimizer.register_load_state_dict_post_hook(waiting.correct)
    if resuming is None:
        waiting.make()
    else:
        resuming.add_callback(AnnounceAtBegin(waiting))


def light(chosen: Plan) -> Plan:
    """The plan with shapes in place of weights, so that keeping it keeps no weight alive."""
    return replace(
        chosen,
        entries=tuple(replace(e, param=_shape_of(e.param)) for e in chosen.entries),
        skipped=tuple(replace(e, param=_shape_of(e.param)) for e in chosen.skipped),
    )


def in_force(chosen: Plan, groups: list[dict[str, Any]]) -> Plan:
    """The plan with the options that the groups have now, as after loading a checkpoint."""
    of_weight: dict[str, dict[str, Any]] = {}
    for group in groups:
        own = {n: group[n] for n in ("rule", *OPTIONS[group["rule"]]) if n in group}
        own["lr"] = peak_lr(group)
        of_weight.update({name: own for name in group.get("param_names", ())})
    entries = tuple(
        replace(entry, options={**entry.options, **of_weight.get(entry.name, {})})
        for entry in chosen.entries
    )
    return replace(chosen, entries=entries)


def _shape_of(param: torch.Tensor) -> torch.Tensor:
    return torch.empty(param.shape, dtype=param.dtype, device="meta")
