"""The visible progress of a training: a bar on a terminal, and one line per logging step.

The clock of a run survives a restart.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Protocol

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_relopt.hf.callbacks import unwrapped

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
# Telemetry that a line has no room for: it is in the log, in telemetry.jsonl and in the picture.
QUIET_STARTS = ("relative_update_", "step_drt", "unchanged_by", "drt_since", "changed_since")


class ShowsProgress(Protocol):
    """An object that counts the optimizer steps, and ends the bar."""

    step: int | None
    bar: Any


class ProgressLines(TrainerCallback):
    """Shows progress and telemetry, and adds the seconds trained so far to each log entry.

    The first and the last step are logged whatever logging_steps says, so that a short run shows
    its loss, too.

    Args:
        unit: what is counted per second, as in "tokens".
        units_per_step: how many of them one optimizer step takes, over all processes.
        run: is told after each step how many are done.
    """

    def __init__(self, unit: str, units_per_step: int, run: ShowsProgress | None = None) -> None:
        self.unit = unit
        self.units_per_step = units_per_step
        self.run = run
        self.bar = Bar()
        if run is not None:
            run.bar = self.bar

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock where the checkpoint stopped it."""
        self.seconds_before = seconds_trained(state.log_history)
        self.started = time.monotonic()
        self.first_step = state.global_step
        if self.run is not None:
            self.run.step = state.global_step
        self.say(state, f"training: step {state.global_step} of {state.max_steps}")
        self.bar.begin(state, "training", state.max_steps, state.global_step)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Have the last step measured, which is logged whatever the Trainer's schedule says."""
        ours = unwrapped(optimizer)
        if ours is not None and state.global_step + 1 >= state.max_steps and _logs(args):
            ours.measure_next_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Count the step, and have the last one logged."""
        if self.run is not None:
            self.run.step = state.global_step
        self.bar.move_to(state.global_step)
        if _logs(args) and state.global_step >= state.max_steps:
            control.should_log = True
        return control

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
            self.bar.tell(f"loss {float(logs['loss']):.3f}")
            self.say(state, self._line(state, logs, elapsed))

    def _line(self, state: TrainerState, logs: dict[str, Any], elapsed: float) -> str:
        rate = (state.global_step - self.first_step) / max(elapsed, 1e-9)
        telemetry = [
            f"{WORDS.get(name, name)} {_metric(name, value)}"
            for name, value in logs.items()
            if name not in SHOWN_APART
            and isinstance(value, (int, float))
            and not ("/" in name or name.startswith(QUIET_STARTS))
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

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Move the bar of an evaluation."""
        if hasattr(eval_dataloader, "__len__"):
            self.bar.step_aside(state, "validation", len(eval_dataloader))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Print what the evaluation measured."""
        self.bar.end_aside()
        timing = ("_runtime", "_per_second", "epoch", "_time")
        shown = [
            f"{name.removeprefix('eval_').replace('_', ' ')} {_metric(name, value)}"
            for name, value in (metrics or {}).items()
            if isinstance(value, (int, float)) and not name.endswith(timing)
        ]
        self.say(state, f"  validation at step {state.global_step}: {', '.join(shown)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the bar away."""
        self.bar.end()

    def say(self, state: TrainerState, line: str) -> None:
        """Print on the main process only, at once, above the bar if there is one."""
        if state.is_world_process_zero:
            self.bar.print_above(line)


class Bar:
    """A progress bar on a terminal; where stderr is a file or a pipe, nothing at all."""

    def __init__(self) -> None:
        self._main: tqdm | None = None
        self._aside: tqdm | None = None

    def begin(self, state: TrainerState, words: str, total: int, at: int) -> None:
        """Show the bar of the training."""
        self.end()
        if state.is_world_process_zero and is_terminal():
            self._main = tqdm(total=total, initial=at, desc=words, unit="step", **_style())

    def move_to(self, step: int) -> None:
        """Say how many steps are done."""
        if self._main is not None:
            self._main.update(step - self._main.n)

    def tell(self, words: str) -> None:
        """Show a few words at the end of the bar."""
        if self._main is not None:
            self._main.set_postfix_str(words, refresh=False)

    def step_aside(self, state: TrainerState, words: str, total: int) -> None:
        """One step of something else, with a bar of its own until it has ended."""
        if self._aside is None and state.is_world_process_zero and is_terminal():
            self._aside = tqdm(total=total, desc=words, unit="batch", leave=False, **_style())
        if self._aside is not None:
            self._aside.update()

    def end_aside(self) -> None:
        """Take the bar of something else away."""
        if self._aside is not None:
            self._aside.close()
            self._aside = None

    def end(self) -> None:
        """Take all bars away."""
        self.end_aside()
        if self._main is not None:
            self._main.leave = False
            self._main.close()
            self._main = None

    def print_above(self, line: str) -> None:
        """Print a line without a bar running through it."""
        if self._main is not None or self._aside is not None:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(line, flush=True)


def _style() -> dict[str, Any]:
    try:
        knows_its_size = min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (OSError, ValueError):
        knows_its_size = False
    # Where a terminal says 0, tqdm shows nothing.
    size = {"dynamic_ncols": True} if knows_its_size else {"ncols": 80, "nrows": 24}
    return {"file": sys.stderr, "mininterval": 0.5, **size}


def is_terminal() -> bool:
    """Whether somebody watches who can see a line being drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


def _logs(args: TrainingArguments) -> bool:
    return str(getattr(args.logging_strategy, "value", args.logging_strategy)) != "no"


def _metric(name: str, value: float) -> str:
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
