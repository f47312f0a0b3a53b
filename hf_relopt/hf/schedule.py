"""Move a fresh learning rate schedule to the step of a checkpoint's schedule.

For a run that resumes a checkpoint's weights and step, but not its optimizer state: the optimizer
that wrote it may have had other learning rates and other param groups, so its schedule cannot be
loaded. The fresh one is stepped as often as the saved one was. That is right for every scheduler,
also for those whose next value depends on the previous one (StepLR, SequentialLR, ...).
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_relopt.errors import FormatError
from hf_relopt.options.checks import is_of_numpy


def in_plain_numbers(scheduler: Any) -> None:
    """Make the numpy numbers in a schedule Python's own, or its checkpoint could not be read."""
    schedule = getattr(scheduler, "scheduler", scheduler)  # in Accelerate's wrapper
    for one in (schedule, *getattr(schedule, "_schedulers", ())):
        for name, value in vars(one).items():
            if isinstance(value, list):
                setattr(one, name, [n.item() if is_of_numpy(n) else n for n in value])
            elif is_of_numpy(value):
                setattr(one, name, value.item())


# What a schedule holds for each param group.
_PER_GROUP = ("base_lrs", "lr_lambdas")


def load_schedule(scheduler: Any, folder: Path) -> None:
    """Load the schedule of a checkpoint that the same optimizer wrote."""
    scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))


def check_schedule(scheduler: Any, fresh: dict[str, Any], folder: Path) -> None:
    """Check that the schedule of a checkpoint can be that of ``scheduler``; torch takes any.

    Args:
        scheduler: of any kind.
        fresh: its state before that of the checkpoint was loaded.
        folder: a checkpoint.

    Raises:
        FormatError: it cannot.
    """
    if fault := _schedule_fault(scheduler, fresh, _saved(folder)):
        raise FormatError(
            f"{folder} cannot be resumed, because of its scheduler.pt: {fault}. Resume from "
            "another checkpoint, or pass train(..., discard_optimizer_state=True)."
        )


def _schedule_fault(scheduler: Any, fresh: dict[str, Any], saved: dict[str, Any]) -> str | None:
    for name, value in saved.items():
        if name not in fresh:
            # It would take the place of a method.
            if callable(getattr(type(scheduler), str(name), None)):
                return f"it holds {name} = {value!r}"
        elif _is_number(fresh[name]):
            # Some values are unknown at first, but never the place in the schedule.
            if not _is_number(value) and (value is not None or name == "last_epoch"):
                return f"its {name} is {type(value).__name__}, not a number"
        elif name in _PER_GROUP and isinstance(fresh[name], list):
            if not isinstance(value, list) or len(value) != len(fresh[name]):
                return f"its {name} is not a list of {len(fresh[name])}, one for each param group"
            if all(map(_is_number, fresh[name])) and not all(map(_is_finite, value)):
                return f"its {name} holds something other than finite numbers"
    if not saved:
        return None  # weights alone
    missing = [name for name in (*_PER_GROUP, "_schedulers") if name in fresh and name not in saved]
    return f"it lacks {missing[0]}" if missing else None


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def take_place(scheduler: Any, folder: Path, metric: str | None) -> None:
    """Step a fresh ``scheduler`` as often as that of the checkpoint in ``folder``.

    Args:
        scheduler: as it was made, of any kind that torch or Transformers have.
        metric: name of the evaluation metric that ReduceLROnPlateau and GreedyLR follow, with or
            without "eval_".

    Raises:
        FormatError: the checkpoint's log lacks evaluations that such a schedule has to see.
    """
    state = json.loads((folder / "trainer_state.json").read_bytes())
    saved = _saved(folder)
    with warnings.catch_warnings():
        # Not a mistake here: the optimizer steps were taken by the run that wrote the checkpoint.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        if not _follows_a_metric(scheduler):
            for _ in range(_steps(saved, state)):
                scheduler.step()
            return
        values = list(_evaluations(state["log_history"], metric or "loss"))
        seen = saved.get("last_epoch") if "num_bad_epochs" in saved else None
        if seen is not None and seen != len(values):
            raise FormatError(
                f"{folder} was written after {seen} evaluations that its schedule followed, but "
                f"its log has {len(values)} of eval_{metric or 'loss'}: the learning rate cannot "
                "be restored. Start a new run from its weights, or use another lr_scheduler_type."
            )
        for value in values:
            scheduler.step(value)


def _saved(folder: Path) -> dict[str, Any]:
    """The checkpoint's own schedule; empty where weights were saved alone."""
    file = folder / "scheduler.pt"
    return torch.load(file, weights_only=True) if file.is_file() else {}


def _steps(saved: dict[str, Any], state: dict[str, Any]) -> int:
    """How often a schedule that is stepped with the optimizer has been stepped."""
    place = saved.get("last_epoch")
    # One that follows a metric counts evaluations; ChainedScheduler counts nothing itself.
    if not isinstance(place, int) or "num_bad_epochs" in saved:
        return int(state["global_step"])
    # Steps that a gradient scaler has skipped are left out here.
    return place


def _follows_a_metric(scheduler: Any) -> bool:
    return "metrics" in inspect.signature(scheduler.step).parameters


def _evaluations(log: list[dict[str, Any]], metric: str) -> Iterator[float]:
    """The metric at each evaluation that has stepped the schedule: one per step, none before it."""
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    steps = set()
    for entry in log:
        step = entry.get("step", 0)
        if name in entry and step and step not in steps:
            steps.add(step)
            yield float(entry[name])
