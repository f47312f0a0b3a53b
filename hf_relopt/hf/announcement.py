"""Log lines about an optimizer, written once they are true.

A resumed run has the checkpoint's learning rate and options, known only once the optimizer state is
loaded. A line written before that would be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import TrainerCallback

from hf_relopt.hf import learning_rate
from hf_relopt.hf.learning_rate import Choice
from hf_relopt.hf.log import logger
from hf_relopt.lns.tensor import LNSTensor, lns_of
from hf_relopt.optim.base import RelativeOptimizer
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans.plan import Plan, peak_lr


@dataclass
class Announcement:
    """Logs the learning rate and the plan of one optimizer, once.

    Args:
        args: TrainingArguments, for the learning rate that is in force after a resume.
        chosen: the plan; see :func:`light`.
        choice: its learning rate, and the reason for it.
        leader: number of a param group with the learning rate of ``choice``; None if there is none.
        is_made: True once the plan is logged.
    """

    args: Any
    chosen: Plan
    choice: Choice
    leader: int | None
    is_made: bool = False

    def make(self) -> None:
        """Log the choice and the plan, unless a plan was logged already."""
        if not self.is_made:
            self.is_made = True
            logger.info("learning rate %g, %s.", self.choice.lr, self.choice.why)
            logger.info("%s", self.chosen)

    def correct(self, optimizer: torch.optim.Optimizer) -> None:
        """After loading state: log what is in force now, and write it into the arguments."""
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
    """Makes an announcement that waited for state, in case none was loaded."""

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
    """The plan with shapes in place of weights, so that it holds no weight in memory."""
    return replace(
        chosen,
        entries=tuple(replace(e, param=_shape_of(e.param)) for e in chosen.entries),
        skipped=tuple(replace(e, param=_shape_of(e.param)) for e in chosen.skipped),
    )


def in_force(chosen: Plan, groups: list[dict[str, Any]]) -> Plan:
    """The plan with the current options of the groups, as after loading a checkpoint."""
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
    codes = lns_of(param)
    if codes is not None:
        return LNSTensor.without_values(param.shape, codes.form, param.dtype)
    return torch.empty(param.shape, dtype=param.dtype, device="meta")
