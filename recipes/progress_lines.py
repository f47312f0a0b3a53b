"""One line per logging step that a person can read, and a clock that survives a restart."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SHOWN_APART = {"loss", "learning_rate", "epoch", "step", "total_flos"}
WORDS = {
    "grad_norm": "gradient",
    "relative_update": "relative update",
    "at_bound": "at bound",
    "changed_entries": "changed",
    "skipped_tensors": "skipped",
}
SHARES = {"at_bound", "changed_entries"}
SECONDS = "seconds"


class ProgressLines(TrainerCallback):
    """Prints progress and telemetry, and adds the seconds trained so far to each log entry.

    Args:
        unit: what is counted per second, as in "tokens".
        units_per_step: how many of them one optimizer step takes, over all processes.
    """

    def __init__(self, unit: str, units_per_step: int) -> None:
        self.unit = unit
        self.units_per_step = units_per_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock where the checkpoint stopped it."""
        self.seconds_before = seconds_trained(state.log_history)
        self.started = time.monotonic()
        self.first_step = state.global_step
        say(state, f"training: step {state.global_step} of {state.max_steps}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Print a line for a training step; evaluations have their own."""
        if not hasattr(self, "started") or not logs or "train_runtime" in logs:
            return
        elapsed = time.monotonic() - self.started
        state.log_history[-1][SECONDS] = round(self.seconds_before + elapsed, 2)
        if "loss" in logs:
            say(state, self._line(state, logs, elapsed))

    def _line(self, state: TrainerState, logs: dict[str, Any], elapsed: float) -> str:
        rate = (state.global_step - self.first_step) / max(elapsed, 1e-9)
        telemetry = [
            f"{WORDS.get(name, name)} {_figure(name, value)}"
            for name, value in logs.items()
            if name not in SHOWN_APART and isinstance(value, (int, float))
        ]
        left = (state.max_steps - state.global_step) / max(rate, 1e-9)
        parts = [
            f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}",
            f"loss {float(logs['loss']):.3f}",
            f"lr {float(logs.get('learning_rate', 0)):.3g}",
            *telemetry,
            f"{rate * self.units_per_step:,.0f} {self.unit}/s",
            f"{duration(left)} left",
        ]
        return "  ".join(parts)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Print what the evaluation measured."""
        timing = ("_runtime", "_per_second", "epoch", "_time")
        shown = [
            f"{name.removeprefix('eval_').replace('_', ' ')} {_figure(name, value)}"
            for name, value in (metrics or {}).items()
            if isinstance(value, (int, float)) and not name.endswith(timing)
        ]
        say(state, f"  validation at step {state.global_step}: {', '.join(shown)}")


def _figure(name: str, value: float) -> str:
    if name in SHARES:
        return f"{value:.1%}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def seconds_trained(log_history: list[dict[str, Any]]) -> float:
    """Seconds of training behind the last entry of a log, over all restarts."""
    return max((entry.get(SECONDS, 0.0) for entry in log_history), default=0.0)


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def say(state: TrainerState, line: str) -> None:
    """Print on the main process only, at once."""
    if state.is_world_process_zero:
        print(line, flush=True)
