"""One start of a recipe: the run it belongs to, data prepared once for all processes, training."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch.distributed as dist
from clear_messages import Outcome, Stopped, is_full_disk, reason
from closing_summary import print_summary
from command_line import (
    check_training_arguments,
    clips_for_nothing,
    read_request,
)
from datasets import DatasetDict, load_from_disk
from first_look import optimizer_name, run_folder_of
from recipe import Recipe, Request
from run_folder import FolderLock, RunFolder, whole_folder
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging
from typed_command import typed_command

from hf_relopt.errors import ConfigError
from hf_relopt.hf.checkpoints import find_fault, last_complete_checkpoint, require_complete
from hf_relopt.hf.learning_rate import given_in, said_by
from hf_relopt.shipped import OPTIMIZER_NAMES

Prepared = tuple[DatasetDict, PreTrainedTokenizerBase, PreTrainedModel | None]

# What makes a run the run it is, besides its model and data: with others it is another run.
SETTINGS = (
    "optim_args", "warmup_steps", "max_steps", "num_train_epochs", "seed", "weight_decay",
    "max_grad_norm", "bf16", "fp16",
)  # fmt: skip


def work(recipe: Recipe, words: Sequence[str], outcome: Outcome) -> None:
    """Train unless the run is finished, and print the summary; after the first look.

    Args:
        recipe: what the script is.
        words: flags and values.
        outcome: learns what the last line has to know.

    Raises:
        ConfigError: arguments that cannot be used.
        Stopped: a signal; it says how far the run has come.
    """
    request, given = read_request(recipe, words)
    run = RecipeRun(request, given)
    train = importlib.import_module(recipe.work).train
    with closing(run):
        again = run.is_finished
        outcome.run, outcome.signals.at_once = run, False
        try:
            if not again:
                train(request, run)
            if request.args.process_index == 0:
                print_summary(run.folder, recipe.metric, again=again)
        except Stopped as stopped:
            stopped.standing = f"stopped {run.standing()}"
            run.leaves_in_haste = True
            raise


class RecipeRun:
    """The folder, the settings and the prepared data of one run.

    Args:
        request: of the command line; output_dir is set to runs/<run_name> if it was not given.
        given: names of the arguments the user gave.

    Attributes:
        request: of the command line.
        args: its training arguments.
        step: optimizer steps that are done; None before the training.
        bar: the progress bar, which is in the way of last words; None before the training.
        leaves_in_haste: a signal ended it, so other ranks may never reach the end.

    Raises:
        ConfigError: a setting or a folder that cannot be used. Nothing is written yet.
    """

    def __init__(self, request: Request[Any, Any], given: set[str]) -> None:
        args = request.args
        check_training_arguments(args)
        if "output_dir" not in given:
            args.output_dir = str(run_folder_of({"run_name": args.run_name}))
        elif "run_name" not in given:
            args.run_name = Path(args.output_dir).name
        if "max_grad_norm" not in given and clips_for_nothing(args):
            args.max_grad_norm = 0.0
        self.request, self.args = request, args
        self.overwrite = request.run.overwrite_output_dir
        self.settings = _settings(args, request.sources, given)
        self.step: int | None = None
        self.bar: Any = None
        self.leaves_in_haste = False
        self._lock = FolderLock()
        try:
            RunFolder(args.output_dir).check_place()
            with args.main_process_first(local=False, desc="looking at the run folder"):
                self._lock_folder()
                self.folder = RunFolder(args.output_dir)
            self.folder.check(self.settings, overwrite=self.overwrite)
            self._check_checkpoint()
        except BaseException:
            self.close()
            raise
        # Their bars would run through the progress lines.
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing to do."""
        return self.folder.finished and not self.overwrite

    def close(self) -> None:
        """Let another process work in the folder, and leave the group of processes.

        A rank that ends with the group's threads still alive may abort after all is done.
        """
        if self.bar is not None:
            self.bar.end()
        self._lock.release()
        if dist.is_available() and dist.is_initialized() and not self.leaves_in_haste:
            dist.destroy_process_group()

    def _lock_folder(self) -> None:
        if self.args.process_index == 0:
            self._lock.acquire(Path(self.args.output_dir), lambda line: say_main(self.args, line))

    def _check_checkpoint(self) -> None:
        path = named_checkpoint(self.args)
        if path is None:
            return
        require_complete(path)
        if self.overwrite and self.folder.path.resolve() in path.resolve().parents:
            raise ConfigError(
                f"--overwrite_output_dir would delete {path}, the checkpoint to start from. Leave "
                "it out to resume, or use another --run_name."
            )

    def checkpoint(self) -> Path | None:
        """The checkpoint to resume from: the run's own last one, else the one the user named.

        One that was named inside the run's folder goes before later ones.
        """
        named, own = named_checkpoint(self.args), last_complete_checkpoint(self.args.output_dir)
        inside = named is not None and self.folder.path.resolve() in named.resolve().parents
        if own is None or inside:
            return named
        return Path(own)

    def standing(self) -> str:
        """How far the run has come, and what the same command would do."""
        if self.folder.finished:
            return "after the run had finished; nothing is lost"
        last = _newest_whole(self.folder.path)
        where = "before the first step" if self.step is None else f"at step {self.step}"
        if last is not None:
            return f"{where}; the same command resumes from {last.name}"
        return f"{where}; there is no checkpoint yet, so the same command starts over"

    def prepare(self, build: Callable[[], Prepared]) -> Prepared:
        """Data, tokenizer and perhaps the model, made by the main process once per run.

        Args:
            build: makes them. It must find the user's mistakes, since the folder is created, or
                emptied if the user wants that, only after it.

        Returns:
            The data as it lies on disk, the tokenizer, and the model if `build` was needed.
        """
        data = self.folder.path / "data"
        model = None
        with self.args.main_process_first(local=False, desc="preparing the data"):
            is_main = self.args.process_index == 0
            resumes = self.folder.begun and not self.overwrite and not self.folder.being_emptied
            if is_main and not (resumes and data.is_dir()):
                splits, tokenizer, model = build()
                self.folder.begin(self.settings, str(typed_command()), overwrite=self.overwrite)
                self._lock_folder()
                with whole_folder(data) as unfinished:
                    splits.save_to_disk(unfinished)
                    tokenizer.save_pretrained(unfinished / "tokenizer")
            elif is_main:
                say_main(self.args, f"resuming the run in {self.folder.path}")
        # Read again what the main process may have written: all must agree on what is still to do.
        self.folder = RunFolder(self.folder.path)
        try:
            return load_from_disk(data), AutoTokenizer.from_pretrained(data / "tokenizer"), model
        except Exception as error:  # whatever half a file or another's file comes to
            if is_full_disk(error):
                raise
            raise ConfigError(
                f"the prepared data in {data} cannot be read: {reason(error)}. Remove {data}; the "
                "next start makes it again."
            ) from error


def named_checkpoint(args: TrainingArguments) -> Path | None:
    """The checkpoint the user named; None if the run folder's own is to be found."""
    wanted = args.resume_from_checkpoint
    return None if wanted is None or str(wanted).lower() in ("true", "false") else Path(wanted)


def _newest_whole(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones are not logged."""
    there = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    newest_first = sorted(there, key=lambda path: -int(path.name[11:]))
    return next((path for path in newest_first if find_fault(path) is None), None)


def _settings(args: TrainingArguments, sources: Sequence[Any], given: set[str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for source in sources:
        merged.update(asdict(source))
    merged.update({name: getattr(args, name) for name in SETTINGS})
    merged["optim"] = optimizer_name(args)
    merged["learning_rate"] = _learning_rate(args, given)
    merged["lr_scheduler_type"] = str(getattr(args.lr_scheduler_type, "value", ""))
    merged["sequences_per_step"] = samples_per_step(args)
    return merged


def samples_per_step(args: TrainingArguments) -> int:
    """Training samples of one optimizer step, over all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def _learning_rate(args: TrainingArguments, given: set[str]) -> float | None:
    """The peak learning rate; None where one of ours chooses it."""
    is_chosen = optimizer_name(args) in OPTIMIZER_NAMES and given_in(args) is None
    return None if is_chosen and "learning_rate" not in given else said_by(args)


def say_main(args: TrainingArguments, line: str) -> None:
    """Print on the main process only, at once."""
    if args.process_index == 0:
        print(line, flush=True)
