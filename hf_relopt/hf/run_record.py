"""relopt_run.json: what a run is, written into its folder when training begins.

It is completed when training ends, so a run that was killed leaves a record that says it is not
finished. Cards, reports and comparisons read it; nothing in training does.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_relopt.errors import one_line
from hf_relopt.hf.log import logger
from hf_relopt.hf.run_facts import base_of, record_of
from hf_relopt.whole_file import whole_file

RECORD = "relopt_run.json"
BASE = ("base_model", "base_revision", "base_is_local")


class RunRecord(TrainerCallback):
    """Writes relopt_run.json; RelOptTrainer and `hf-relopt run --telemetry` have it.

    Any other Trainer gets it by ``trainer.add_callback(RunRecord())``.

    The main process alone writes. What goes wrong is logged: no training fails over its record.
    """

    def __init__(self) -> None:
        self.record: dict[str, Any] | None = None
        self.resumed_from: str | None = None
        self._base: dict[str, Any] | None = None
        self._began = 0.0
        self._seconds_before = 0.0

    @classmethod
    def add_to(cls, trainer: Any) -> RunRecord:
        """The one that a Trainer has, or a new one that is added to it and sees its model."""
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, cls):
                return callback
        record = cls()
        record.look(trainer.model)
        trainer.add_callback(record)
        return record

    def look(self, model: nn.Module | None) -> None:
        """Look at a model that is not trained yet: what it began with cannot be seen later."""
        try:
            self._base = None if model is None else base_of(model)
        except Exception as error:  # a model of any kind: its record is no reason to stop
            logger.debug("the record of the run has no base model: %s", one_line(error))

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Look at the model, where the callback was given to the Trainer when it was made."""
        self.look(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        """Write the record; a resumed run keeps when it started, and what it began with."""
        self.record = None
        # A trial of a search shares the folder with all others.
        if not state.is_world_process_zero or is_of_search(state) or model is None:
            return
        if self._base is None and state.global_step == 0:
            self.look(model)
        with _no_harm("written"):
            record = record_of(args, state, model, optimizer, lr_scheduler)
            record |= {"started": _now(), "seconds": 0.0, "finished": False, **(self._base or {})}
            if state.global_step > 0:
                record |= self._kept(args)
            self._began, self._seconds_before = time.monotonic(), record["seconds"]
            self.record = record
            write(self.record, args.output_dir)

    def _kept(self, args: TrainingArguments) -> dict[str, Any]:
        """What the record of the run that is resumed says of its beginning."""
        folders = [Path(args.output_dir)]
        if self.resumed_from is not None:
            folders.insert(0, Path(self.resumed_from).absolute().parent)
        before = next(filter(None, map(read_or_none, folders)), {})
        names = ("started", "seconds", *BASE, "evaluations")
        kept = {name: before[name] for name in names if name in before}
        seconds = kept.get("seconds")
        if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
            kept["seconds"] = 0.0
        return kept

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Keep the first evaluation and the last, also one after training."""
        found = {
            name: float(value) if isinstance(value, float) else value
            for name, value in (metrics or {}).items()
            if name.startswith("eval_") and isinstance(value, (int, float))
        }
        if self.record is None or not found:
            return
        known = [each for each in self.record.get("evaluations", []) if isinstance(each, dict)]
        if known and known[-1].get("step") == state.global_step:
            found = {**known.pop().get("metrics", {}), **found}
        known.append({"step": state.global_step, "metrics": found})
        self.record["evaluations"] = known if len(known) < 3 else [known[0], known[-1]]
        if self.record["finished"]:
            with _no_harm("completed"):
                write(self.record, args.output_dir)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note how far the run has come, in case it is killed."""
        self._note(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Complete the record."""
        self._note(args, state, finished=True)

    def _note(self, args: TrainingArguments, state: TrainerState, finished: bool = False) -> None:
        if self.record is None:
            return
        self.record["training"] |= {"steps": state.global_step, "epochs": state.epoch}
        seconds = self._seconds_before + time.monotonic() - self._began
        self.record |= {"seconds": round(seconds, 2), "finished": finished}
        if finished and getattr(args, "load_best_model_at_end", False):
            self.record["training"]["best_step"] = getattr(state, "best_global_step", None)
        with _no_harm("completed"):
            write(self.record, args.output_dir)


def is_of_search(state: TrainerState) -> bool:
    """Whether a training is a trial of a hyperparameter search."""
    return state.trial_name is not None or state.trial_params is not None


class _no_harm:
    """Logs what goes wrong in a block, and goes on."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        logger.warning(
            "the run's record, %s, cannot be %s: %s.", RECORD, self._what, one_line(error)
        )
        return True


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return _plain(value.item())
    return str(value)


def write(record: Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write a record; it appears complete or not at all."""
    path = Path(folder) / RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(record), indent=2, allow_nan=False)
    with whole_file(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    return path


def read_or_none(folder: Path) -> dict[str, Any] | None:
    """The record in a folder; None if there is none, or a damaged one."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
