"""RelOptCallback: telemetry of the steps that a Trainer logs."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_relopt.hf import arguments
from hf_relopt.hf.log import logger
from hf_relopt.telemetry.lines import FILE
from hf_relopt.telemetry.recorder import Recorder, unwrapped
from hf_relopt.telemetry.snapshots import Initial

__all__ = ["RelOptCallback", "unwrapped", "will_log"]


class RelOptCallback(TrainerCallback):
    """Measures the steps that are logged, and no others, for any Trainer.

    The metrics go into the Trainer's log, and so to TensorBoard and all others that it reports to;
    each layer's numbers go to ``telemetry.jsonl`` in ``output_dir``; what a user would want to know
    is said once, there and in the log. docs/telemetry.md lists all of it. RelOptTrainer has one by
    default; a stock Trainer takes it as ``callbacks=[RelOptCallback()]``. With another optimizer
    nothing is measured.

    Args:
        snapshots: "memory" keeps two copies of the weights, for ``drt_since_start`` and
            ``changed_since_snapshot``.
        snapshot_dtype: of the copies: "bfloat16" (4 bytes per weight for both) or "float32" (8).
        initial: in place of copies, the folder or file of the network that training began with. It
            is read from disk at each logging step, for ``drt_since_start``.
        file: name of the file in ``output_dir``; None for none.

    Raises:
        ConfigError: an option that is no way to take snapshots.
    """

    def __init__(
        self,
        *,
        snapshots: Literal["memory"] | None = None,
        snapshot_dtype: str = "bfloat16",
        initial: Initial | None = None,
        file: str | os.PathLike[str] | None = FILE,
    ) -> None:
        self._options: dict[str, Any] = {
            "snapshots": snapshots,
            "snapshot_dtype": snapshot_dtype,
            "initial": initial,
        }
        self._file = file
        Recorder(None, **self._options)  # what is wrong is said before anything is trained
        self._recorder: Recorder | None = None
        self._optimizer: Any = None
        # A Trainer that was not asked for telemetry says nothing of its lack.
        self._is_default = False

    def attach(self, trainer: Any) -> RelOptCallback:
        """Add it to a Trainer that exists, in the place of one that is there; returns itself."""
        while trainer.pop_callback(RelOptCallback) is not None:
            pass
        trainer.add_callback(self)
        go_first(self, trainer.callback_handler)
        return self

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the weights, which are loaded and on their devices by now."""
        self._recorder, self._optimizer = None, unwrapped(optimizer)
        if self._optimizer is None:
            if not self._is_default:
                words = type(getattr(optimizer, "optimizer", optimizer)).__name__
                logger.info("telemetry: %s is no optimizer of hf_relopt; not measured.", words)
            return
        if not self._takes_its_place():
            return
        path = None if self._file is None else Path(args.output_dir, self._file)
        recorder = Recorder(path, **self._options)
        name = arguments.name_of(args) or type(self._optimizer).__name__.lower()
        recorder.begin(
            self._optimizer,
            model,
            name=name,
            step=state.global_step,
            writes=state.is_world_process_zero,
        )
        self._recorder = recorder

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Ask for a measurement if this step will be logged."""
        if self._recorder is not None and will_log(args, state, train_dataloader):
            self._optimizer.measure_next_step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the metrics of the step into its log, for all callbacks that come after this one."""
        if logs is None or "loss" not in logs:
            return
        metrics = self.measured(state, logs)
        logs.update(metrics)
        if metrics and state.log_history and state.log_history[-1]["step"] == state.global_step:
            state.log_history[-1].update(metrics)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Let go of the copies of the weights."""
        self._recorder = None

    def measured(self, state: TrainerState, logs: dict[str, Any]) -> dict[str, float]:
        """The metrics of the last measured step, recorded once; empty if there are none."""
        measured = None if self._recorder is None else self._optimizer.take_measured()
        if self._recorder is None or measured is None:
            return {}
        lr = logs.get("learning_rate")
        loss = logs.get("loss")
        return self._recorder.record(
            measured,
            step=state.global_step,
            lr=float(self._optimizer.param_groups[0]["lr"] if lr is None else lr),
            loss=None if loss is None else float(loss),
        )

    @classmethod
    def add_to(cls, trainer: Any, *, by_default: bool) -> None:
        """Add one to a Trainer that has none.

        Args:
            by_default: nobody has asked for it: with another optimizer nobody is told either.
        """
        if not any(isinstance(each, cls) for each in trainer.callback_handler.callbacks):
            callback = cls()
            callback._is_default = by_default
            trainer.add_callback(callback)

    def _takes_its_place(self) -> bool:
        """Go before the callbacks that report logs; False if another one of its kind measures."""
        from hf_relopt.hf import trainers

        for handler in trainers.handlers_with(self):
            alike = [each for each in handler.callbacks if isinstance(each, RelOptCallback)]
            asked_for = [each for each in alike if not each._is_default]
            if (asked_for or alike)[-1] is not self:
                return False
            go_first(self, handler)
        return True


def go_first(callback: TrainerCallback, handler: Any) -> None:
    """Make ``callback`` the first of a handler: what it adds to a log reaches all others."""
    own = handler.callbacks
    own.insert(0, own.pop([each is callback for each in own].index(True)))


def will_log(args: TrainingArguments, state: TrainerState, dataloader: Any = None) -> bool:
    """Whether the step that begins now will be logged.

    Args:
        dataloader: of the training, whose length says where an epoch ends.
    """
    step = state.global_step + 1
    strategy = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    if step == 1 and args.logging_first_step:
        return True
    if strategy == "steps":
        return state.logging_steps > 0 and step % state.logging_steps == 0
    if strategy == "epoch":
        # The last one ends with the training.
        return step == state.max_steps or step % _steps_per_epoch(args, state, dataloader) == 0
    return False


def _steps_per_epoch(args: TrainingArguments, state: TrainerState, dataloader: Any) -> int:
    if dataloader is None:
        return max(1, math.ceil(state.max_steps / max(1, state.num_train_epochs or 1)))
    try:
        batches = len(dataloader)
    except TypeError:  # nobody knows how long an epoch is
        return max(1, state.max_steps)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))
