"""Telemetry: metrics of the optimizer's steps that are logged."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_relopt.optim.base import RelativeOptimizer


class TelemetryCallback(TrainerCallback):
    """Asks the optimizer to measure the steps that will be logged, and no others."""

    def __init__(self) -> None:
        self._optimizer: RelativeOptimizer | None = None

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Ask for a measurement if this step will be logged."""
        self._optimizer = unwrapped(optimizer)
        if self._optimizer is not None and will_log(args, state):
            self._optimizer.measure_next_step()

    def figures(self) -> dict[str, float]:
        """The metrics of the last measured step, returned once; empty if there are none."""
        if self._optimizer is None:
            return {}
        return self._optimizer.take_measurement() or {}


def unwrapped(optimizer: torch.optim.Optimizer | None) -> RelativeOptimizer | None:
    """Our optimizer inside Accelerate's wrapper; None for another optimizer."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if isinstance(inner, RelativeOptimizer) else None


def will_log(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the step that begins now will be logged."""
    step = state.global_step + 1
    strategy = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    if step == 1 and args.logging_first_step:
        return True
    if strategy == "steps":
        return state.logging_steps > 0 and step % state.logging_steps == 0
    if strategy == "epoch" and state.num_train_epochs:
        return step % max(1, math.ceil(state.max_steps / state.num_train_epochs)) == 0
    return False
