"""DistanceBudget: a budget for how far training takes a network, as a callback of any Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_relopt.distance.budget import Budget
from hf_relopt.distance.kept import FOLDER
from hf_relopt.errors import ConfigError, UnsupportedSetup
from hf_relopt.hf import guards
from hf_relopt.hf.log import logger


class DistanceBudget(Budget, TrainerCallback, ExportableState):
    """Stop training, or hold weights near, when they get far from where they began.

    Pass it to a Trainer, ``callbacks=[DistanceBudget(hold=0.03)]``, or call ``begin`` and
    ``after_step`` in a custom loop. Works with any optimizer; a bound by the learning rates, which
    costs nothing, is for Fromage's alone.

    Args:
        hold: rho > 0: after each step, weights with |W - W0| > rho |W0| are brought back to the
            surface of that ball.
        drt: > 0: training stops when deep relative trust since the start would pass this.
        layer: > 0: training stops when |W - W0|/|W0| of a weight matrix would pass this.
        every: with ``drt`` or ``layer``, steps from one look to the next, where the distance is
            measured. Bounds are looked at after each step.
        initial: W0: the checkpoint that training begins with: a file, a folder, or a model of the
            hub. None: the weights at the beginning.
        copy: keep W0 in memory ("exact": in the weights' own precision; "bfloat16"), or read it
            from the disk ("disk"). None: "exact" with ``hold``; without it, ``initial`` is read at
            each look, and if there is none the distance is bounded by the learning rates.
        free: patterns (fnmatch) of names of weights that the budget leaves alone, such as those of
            a new task head.

    Attributes:
        last: the last look; None under ``hold``.
        distance: what was measured then; None for a bound.
        left_alone: trained weights that the budget is not for, and why.
        stopped_at: the step at which it has ended a Trainer's run; None while it has not.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
    """

    stopped_at: int | None = None

    # -- events --------------------------------------------------------------------------------

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Begin, or go on where the checkpoint was written.

        Raises:
            ConfigError: a Trainer's option that would break the budget's promise, and all of
                ``begin``.
            UnsupportedSetup: DeepSpeed or FSDP1, which keep weights of their own.
        """
        assert model is not None
        self.stopped_at = None
        _check_launch(args, model)
        strategy = _word(args.save_strategy)
        if strategy == "best" and self.limits.hold is None:
            raise ConfigError(
                "save_strategy is 'best', which decides after the budget what is saved, so a "
                "checkpoint beyond the limit could stay. Use save_strategy='steps' or 'epoch' with "
                "load_best_model_at_end=True, or hold= in place of a limit."
            )
        saved = self._saved(state) if state.global_step else None
        # Trainer looks it up when it saves, also in a run whose checkpoint was written without.
        state.stateful_callbacks.setdefault(type(self).__name__, [])
        if saved is None and state.global_step:
            saved = {"steps": state.global_step, "run": None, "travel": None}
        # What is never saved is never resumed.
        folder = None
        if strategy != "no" or self.limits.copy == "disk" or state.global_step:
            folder = Path(args.output_dir) / FOLDER
        self.begin(model, optimizer, folder=folder, state=saved)
        if self.left_alone:
            names = ", ".join(f"{name} ({why})" for name, why in list(self.left_alone.items())[:5])
            more = f" and {len(self.left_alone) - 5} more" if len(self.left_alone) > 5 else ""
            logger.info("%r leaves alone %s%s.", self, names, more)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hold: before any other callback looks at the weights at the end of the step."""
        self.pull()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look, if a look is due, if a checkpoint will be written, or if this was the last step."""
        self._steps = state.global_step
        due = state.global_step % self.limits.every == 0
        self._look(state, control, due or state.global_step >= state.max_steps)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look if a checkpoint will be written that no look has seen."""
        if self.stopped_at is not None:
            control.should_save = False  # it is written
        elif self.last is None or self.last.step != state.global_step:
            self._look(state, control, False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the copies."""
        self.close()

    def _look(self, state: TrainerState, control: TrainerControl, due: bool) -> None:
        if self.stopped_at is None and self.look(due=due or control.should_save):
            assert self.last is not None
            self.stopped_at = state.global_step
            control.should_training_stop = control.should_save = True
            logger.warning(
                "training stops at step %d: %s. %s checkpoint-%d.",
                state.global_step,
                self.last.passed,
                "The weights are within the limit; they are saved in"
                if self.last.bound
                else "The weights of the last look within the limit are back, and saved in",
                state.global_step,
            )

    # -- checkpoints ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a Trainer keeps in trainer_state.json."""
        return {"args": self.limits.to_dict(), "attributes": {"saved": self.state_dict()}}

    def _saved(self, state: TrainerState) -> dict[str, Any] | None:
        """What the checkpoint holds of this budget; None if it was written without one."""
        found = state.stateful_callbacks.get(type(self).__name__, [])
        entries = found if isinstance(found, list) else [found]
        own = json.loads(json.dumps(self.limits.to_dict()))
        same = [entry for entry in entries if entry.get("args") == own]
        kind = [entry for entry in entries if _kind(entry.get("args", {})) == _kind(own)]
        chosen = same or kind or entries
        # Of two of one class Trainer appends to what it began with: the last is the newest.
        return chosen[-1]["attributes"]["saved"] if chosen else None


def _kind(limits: dict[str, Any]) -> bool:
    return limits.get("hold") is None


def _word(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))


def _check_launch(args: TrainingArguments, model: nn.Module) -> None:
    """Refuse launch modes in which what is written to a weight does not last."""
    guards.check_model(model)
    if getattr(args, "hf_deepspeed_config", None) or guards.is_set("ACCELERATE_USE_DEEPSPEED"):
        raise UnsupportedSetup(
            "DistanceBudget under DeepSpeed: its optimizer keeps weights of its own, and writes "
            "them over those that the budget has moved. Use FSDP2 (fsdp_version: 2), DDP, or a "
            "single device."
        )
