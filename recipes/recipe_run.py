"""One start of a recipe: which run it belongs to, and data prepared once for every process."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch.distributed as dist
from datasets import Dataset, DatasetDict, load_from_disk
from folder_lock import FolderLock
from recipe_arguments import check_training_arguments, clips_for_nothing, optimizer_name
from run_folder import RunFolder, whole_folder
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from hf_relopt.errors import ConfigError
from hf_relopt.hf.checkpoints import require_complete

Prepared = tuple[DatasetDict, PreTrainedTokenizerBase, PreTrainedModel | None]

# What makes a run the run it is, besides its model and data: going on with others is another run.
SETTINGS = (
    "optim_args", "learning_rate", "warmup_steps", "max_steps", "num_train_epochs", "seed",
    "weight_decay", "max_grad_norm", "bf16", "fp16",
)  # fmt: skip


@dataclass(frozen=True)
class RunArguments:
    """What to do with a folder that holds a run."""

    _argument_group_name = "Run"

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "lose the run that is in the folder, and start over"}
    )


class RecipeRun:
    """The folder, the settings and the prepared data of one run.

    Args:
        args: the training arguments; output_dir is set to runs/<run_name> if it was not given.
        sources: the recipe's own argument dataclasses, which tell model and data.
        overwrite: whether the user wants to lose what is in the folder.
        given: names of the arguments the user gave.

    Raises:
        ConfigError: a setting or a folder that cannot be used. Nothing is written yet.
    """

    def __init__(
        self, args: TrainingArguments, sources: Sequence[Any], *, overwrite: bool, given: set[str]
    ) -> None:
        check_training_arguments(args)
        if "output_dir" not in given:
            args.output_dir = str(Path("runs") / (args.run_name or "run"))
        elif "run_name" not in given:
            args.run_name = Path(args.output_dir).name
        if "max_grad_norm" not in given and clips_for_nothing(args):
            args.max_grad_norm = 0.0
        self.args = args
        self.overwrite = overwrite
        self.settings = _settings(args, sources)
        self._lock = FolderLock()
        try:
            with args.main_process_first(local=False, desc="looking at the run folder"):
                self._lock_folder()
                self.folder = RunFolder(args.output_dir)
            self.folder.check(self.settings, overwrite=overwrite)
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
        self._lock.release()
        if dist.is_available() and dist.is_initialized():
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
                "it out to go on, or take another --run_name."
            )

    def prepare(self, build: Callable[[], Prepared]) -> Prepared:
        """Data, tokenizer and perhaps the model, made by the main process once per run.

        Args:
            build: makes them. Whatever the user got wrong must come to light in it, since the
                folder is created, or emptied if that was asked for, only after it.

        Returns:
            The data as it lies on disk, the tokenizer, and the model if `build` was needed.
        """
        data = self.folder.path / "data"
        model = None
        with self.args.main_process_first(local=False, desc="preparing the data"):
            is_main = self.args.process_index == 0
            goes_on = self.folder.begun and not self.overwrite and not self.folder.being_emptied
            if is_main and not (goes_on and data.is_dir()):
                splits, tokenizer, model = build()
                self.folder.begin(self.settings, typed_command(), overwrite=self.overwrite)
                self._lock_folder()
                with whole_folder(data) as unfinished:
                    splits.save_to_disk(unfinished)
                    tokenizer.save_pretrained(unfinished / "tokenizer")
            elif is_main:
                say_main(self.args, f"going on with the run in {self.folder.path}")
        # Read again what the main process may have written: all must agree on what is still to do.
        self.folder = RunFolder(self.folder.path)
        try:
            return load_from_disk(data), AutoTokenizer.from_pretrained(data / "tokenizer"), model
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the prepared data in {data} cannot be read: {error}. Remove {data}; it is made "
                "again."
            ) from error


def named_checkpoint(args: TrainingArguments) -> Path | None:
    """The checkpoint the user named; None if the run folder's own is to be found."""
    wanted = args.resume_from_checkpoint
    return None if wanted is None or str(wanted).lower() == "true" else Path(wanted)


def _settings(args: TrainingArguments, sources: Sequence[Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for source in sources:
        merged.update(asdict(source))
    merged.update({name: getattr(args, name) for name in SETTINGS})
    merged["optim"] = optimizer_name(args)
    merged["lr_scheduler_type"] = str(getattr(args.lr_scheduler_type, "value", ""))
    merged["sequences_per_step"] = (
        args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    )
    return merged


def limited(split: Dataset, most: int | None) -> Dataset:
    """At most so many rows, evenly spaced over the split."""
    if most is None or most >= len(split):
        return split
    if most < 1:
        raise ConfigError(f"max_train_samples and max_eval_samples must be 1 or more, not {most}.")
    return split.select([row * len(split) // most for row in range(most)])


def typed_command() -> str:
    """What the user typed, as it can be typed again."""
    return shlex.join([python_word(), script_word(), *sys.argv[1:]])


def script_word() -> str:
    """The running script, as it is called from the working directory."""
    return _from_here(sys.argv[0])


def python_word() -> str:
    """The Python that runs, in a word that works in this directory."""
    here = _from_here(sys.executable)
    return "python" if os.path.isabs(here) else here


def _from_here(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def say_main(args: TrainingArguments, line: str) -> None:
    """Print on the main process only, at once."""
    if args.process_index == 0:
        print(line, flush=True)
