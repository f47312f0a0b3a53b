"""The recorder: what becomes of a measured step. Metrics, a line in a file, advice."""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Literal

import torch
from torch import nn

from hf_relopt.optim.base import RelativeOptimizer
from hf_relopt.step.measured import Measured
from hf_relopt.step.state import has_state
from hf_relopt.telemetry import snapshots as taking
from hf_relopt.telemetry.advice import Advice
from hf_relopt.telemetry.lines import FORMAT, Lines, read
from hf_relopt.telemetry.network import Layer, layers_of, norms_of
from hf_relopt.telemetry.snapshots import Initial, Since

_logger = logging.getLogger("hf_relopt")


class Recorder:
    """Records the measured steps of one run.

    Args:
        path: of the file of lines; None for none.
        snapshots, snapshot_dtype, initial: see RelOptCallback.

    Raises:
        ConfigError: an option that is no way to take snapshots.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        snapshots: Literal["memory"] | None = None,
        snapshot_dtype: str = "bfloat16",
        initial: Initial | None = None,
    ) -> None:
        taking.check(snapshots, snapshot_dtype, initial)
        self._lines = None if path is None else Lines(path)
        self._asked = snapshots, snapshot_dtype, initial
        self._snapshots: taking.Copies | taking.OnDisk | None = None
        self._layers: list[Layer] = []
        self._begin_line: dict[str, Any] | None = None

    def begin(
        self,
        optimizer: RelativeOptimizer,
        model: nn.Module | None,
        *,
        name: str,
        step: int = 0,
        writes: bool = True,
    ) -> None:
        """Look at the weights before the first step; call it on every rank.

        Args:
            name: of the optimizer, for the file.
            step: how many steps were taken before.
            writes: is this the rank that writes and speaks?

        Raises:
            ConfigError, FormatError: the initial network cannot be read.
        """
        self._writes = writes
        self._layers = layers_of(optimizer, model)
        norms = norms_of(self._layers)
        start = norms
        if step > 0 and self._lines is not None:
            start = _norms_in(read(self._lines.path), self._layers) or norms
        skipped = 0
        if step > 0 and writes:
            counts = [own["skipped"] for own in optimizer.state.values() if has_state(own)]
            skipped = int(sum(map(float, counts)))
        self._advice = Advice(self._layers, start, skipped)
        # Plans have remarked on their learning rates already.
        self._is_planned = any("role" in group for group in optimizer.param_groups)
        self._snapshots = None
        if writes or taking.needs_every_rank(self._layers):
            self._snapshots = taking.taken(*self._asked, self._layers, model, step)
        self._begin_line = {
            "kind": "run",
            "format": FORMAT,
            "step": step,
            "time": time.time(),
            "optimizer": name,
            "layers": [layer.described() for layer in self._layers],
            "norm": norms,
        }
        if isinstance(self._snapshots, taking.Copies) and step > 0:
            self.say(
                step, f"drt_since_start is measured from step {step}, where this run resumed. "
                "Pass initial= (the folder that training began with) to measure from the start."
            )  # fmt: skip

    def record(
        self, measured: Measured, *, step: int, lr: float | None, loss: float | None
    ) -> dict[str, float]:
        """Write the line of a step and say what there is to say; call it on every rank.

        Returns:
            The metrics of the step.
        """
        metrics = dict(measured.metrics)
        since: Since | None = None
        if self._snapshots is not None:
            since = self._snapshots.look(step)
            metrics["drt_since_start"] = since.drt
            if since.unchanged is not None:
                entries = sum(layer.param.numel() for layer in self._layers)
                unchanged = sum(since.unchanged.values())
                metrics["changed_since_snapshot"] = 1 - unchanged / max(1, entries)
        if self._writes:
            self._write(_line(measured, self._layers, step, lr, loss, metrics))
            for text in self._advice.on_step(measured, step, since):
                self.say(step, text)
        return metrics

    def say(self, step: int, text: str) -> None:
        """Log a warning and put it into the file."""
        if not self._writes:
            return
        known = self._is_planned and text.startswith("lr ")
        _logger.log(logging.DEBUG if known else logging.WARNING, "%s", text)
        self._write({"kind": "warning", "step": step, "text": text})

    def _write(self, line: dict[str, Any]) -> None:
        if self._lines is None:
            return
        if self._begin_line is not None:
            self._lines.write(self._begin_line)
            self._begin_line = None
        self._lines.write(line)


def unwrapped(optimizer: torch.optim.Optimizer | None) -> RelativeOptimizer | None:
    """Our optimizer inside Accelerate's wrapper; None for another optimizer."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if isinstance(inner, RelativeOptimizer) else None


def _norms_in(lines: list[dict[str, Any]], layers: list[Layer]) -> list[float | None] | None:
    """The norms with which a run began, if it was a run of these layers."""
    first = next((line for line in lines if line.get("kind") == "run"), None)
    if first is None or first.get("step") != 0:
        return None
    norms = first.get("norm")
    if first.get("layers") != [layer.described() for layer in layers] or norms is None:
        return None
    return norms if len(norms) == len(layers) else None


def _line(
    measured: Measured,
    layers: list[Layer],
    step: int,
    lr: float | None,
    loss: float | None,
    metrics: dict[str, float],
) -> dict[str, Any]:
    found = {each.slot.number: each for each in measured.layers}
    own = [found.get(layer.number) for layer in layers]
    seen = [each if each is not None and each.measured else None for each in own]
    return {
        "kind": "step",
        "step": step,
        "time": time.time(),
        "lr": lr,
        "loss": loss,
        "relative_update": [each.relative_update if each else None for each in seen],
        "norm": [each.norm if each else None for each in seen],
        "at_bound": [each.at_bound if each else None for each in seen],
        "changed": [each.changed_share if each else None for each in seen],
        "metrics": metrics,
    }
