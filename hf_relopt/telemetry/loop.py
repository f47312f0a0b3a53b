"""Telemetry of a custom training loop."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_relopt.errors import ConfigError
from hf_relopt.telemetry.recorder import Recorder, unwrapped
from hf_relopt.telemetry.snapshots import Initial


class Telemetry:
    """Measures every tenth step of a loop, writes a file of lines and logs advice.

    ``log`` after each ``optimizer.step()`` returns the metrics of a step that was measured, and
    None after the others::

        telemetry = Telemetry(optimizer, "run/telemetry.jsonl", model=model)
        for batch in batches:
            loss = model(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if metrics := telemetry.log(loss):
                print(metrics["relative_update"])

    Steps are counted by the optimizer itself, so that gradient accumulation needs no care.

    Args:
        optimizer: a Fromage or Madam, or Accelerate's wrapper around one.
        path: of the file, to which lines are appended; None for none.
        model: whose parameters give the layers' names and their order.
        logging_steps: measure one step out of so many.
        start_step: steps that were taken before, in a loop that resumes.
        snapshots: as for RelOptCallback.
        snapshot_dtype: the same.
        initial: the same.

    Raises:
        ConfigError: another optimizer, whose steps cannot be measured, or a bad option.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        path: str | os.PathLike[str] | None,
        *,
        model: nn.Module | None = None,
        logging_steps: int = 10,
        start_step: int = 0,
        snapshots: Literal["memory"] | None = None,
        snapshot_dtype: str = "bfloat16",
        initial: Initial | None = None,
    ) -> None:
        inner = unwrapped(optimizer)
        if inner is None:
            raise ConfigError(
                f"Telemetry was given a {type(optimizer).__name__}; it measures the steps of an "
                "optimizer of hf_relopt, such as create_optimizer returns."
            )
        if logging_steps < 1:
            raise ConfigError(
                f"logging_steps is {logging_steps!r}; it is a whole number from 1 on. To measure "
                "nothing, leave Telemetry out."
            )
        self._optimizer, self._model, self._every = inner, model, logging_steps
        self._recorder = Recorder(
            path, snapshots=snapshots, snapshot_dtype=snapshot_dtype, initial=initial
        )
        self.step = start_step
        self._has_begun = False
        self._measured_at: int | None = None
        self._hooks = [
            inner.register_step_pre_hook(self._before_step),
            inner.register_step_post_hook(self._after_step),
        ]

    def log(self, loss: float | Tensor | None = None) -> dict[str, float] | None:
        """The metrics of the step that was just taken, if it was measured, and write them.

        With sharded weights, call it on every rank.

        Args:
            loss: of this step, for the file.
        """
        if self._measured_at is None:
            return None
        step, self._measured_at = self._measured_at, None
        measured = self._optimizer.take_measured()
        if measured is None:
            return None
        lr = float(self._lr)
        shown = loss.detach() if isinstance(loss, Tensor) else loss
        shown = None if shown is None else float(shown)
        return self._recorder.record(measured, step=step, lr=lr, loss=shown)

    def close(self) -> None:
        """Take the hooks off the optimizer: nothing is counted or measured any more."""
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, *_: Any) -> None:
        if not self._has_begun:
            # Now, and not when it is made: weights may be moved or sharded in between.
            name = type(self._optimizer).__name__.lower()
            self._recorder.begin(
                self._optimizer, self._model, name=name, step=self.step, writes=is_first_rank()
            )
            self._has_begun = True
        if (self.step + 1) % self._every == 0:
            lr = self._optimizer.param_groups[0]["lr"]
            self._lr = lr.clone() if isinstance(lr, Tensor) else lr
            self._optimizer.measure_next_step()

    def _after_step(self, *_: Any) -> None:
        self.step += 1
        if self.step % self._every == 0:
            self._measured_at = self.step


def is_first_rank() -> bool:
    """True on the rank that writes files: of one process, on that."""
    dist = torch.distributed
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
