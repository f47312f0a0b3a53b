"""The arguments of `pretrain_clm.py`, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_source import DataSource, check_limits
from local_files import TABLE_KINDS, check_table, check_text, text_files
from model_source import ModelSource
from recipe import RunArguments

from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainingArguments

SMALL_BLOCK = 128  # tokens
DEMO_VALIDATION_BLOCKS = 128  # enough for a perplexity good to 1 %, and quick
DEFAULTS = {
    "run_name": "pretrain_clm",
    "optim": "fromage_spectral",
    "lr_scheduler_type": "linear",
    "max_steps": 400,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "logging_steps": 10,
    "logging_first_step": True,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_steps": 100,
    "save_total_limit": 2,
}
# Peak learning rates from scratch: the best of those tried (benchmarks/results/demo_*.md), a guess
# for madam. A pretrained model takes the Trainer's own default, and the presets of fromage what
# hf_relopt has for them.
FROM_SCRATCH_RATES = {"fromage": 0.03, "madam": 0.03, "adamw": 0.002}
# The share of the steps in which AdamW's learning rate rises; ours do without.
FROM_SCRATCH_WARMUP = {"adamw": 0.1}


@dataclass(frozen=True)
class TextSource(DataSource):
    """Where text comes from. Default: the standard library."""

    _argument_group_name = "Text (default: the source text of the Python standard library)"

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "local text, .json, .jsonl, .csv, .tsv, .parquet, or a directory of text"
        },
    )
    text_column: str | None = field(
        default=None, metadata={"help": "column that holds the text, where there are columns"}
    )
    validation_share: float = field(
        default=0.05, metadata={"help": "share split off where there is no validation text"}
    )

    @property
    def is_standard_library(self) -> bool:
        """Whether nothing was named, so that the standard library's text is used."""
        return not (self.dataset_name or self.train_file)

    @property
    def words(self) -> str:
        """This source in a few words, for the card."""
        if self.is_standard_library:
            return "the source text of the Python standard library"
        if self.train_file and Path(self.train_file).is_dir():
            return f"{super().words}, each file as plain text"
        return super().words

    def look_at(self, path: Path) -> None:
        """Find what is wrong with a file, a table or a directory of text."""
        if path.is_dir():
            text_files(path)
        elif path.suffix.lower() in TABLE_KINDS:
            check_table(path, whole=False)
        else:
            check_text(path, whole=False)


@dataclass(frozen=True)
class BlockArguments:
    """How the text is split into blocks, how much of it is used, and how the samples begin."""

    _argument_group_name = "Blocks"

    block_size: int | None = field(
        default=None,
        metadata={"help": "tokens per sequence (default: 128, or what a named model takes)"},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on this many sequences at most"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "validate on this many sequences at most"}
    )
    sample_prompt: str | None = field(
        default=None, metadata={"help": "prompt of the sample at the end"}
    )

    def __post_init__(self) -> None:
        check_limits(self.max_train_samples, self.max_eval_samples)
        if self.block_size is not None and self.block_size < 2:
            raise ConfigError(
                f"block_size is {self.block_size}; a block needs 2 tokens or more, as in 128."
            )


@dataclass(frozen=True)
class PretrainRequest:
    """Everything the command line asked for."""

    model: ModelSource
    text: TextSource
    blocks: BlockArguments
    run: RunArguments
    args: TrainingArguments

    @property
    def validation_blocks(self) -> int | None:
        """Sequences to validate on at most."""
        demo = DEMO_VALIDATION_BLOCKS if self.text.is_standard_library else None
        return demo if self.blocks.max_eval_samples is None else self.blocks.max_eval_samples


def complete(request: PretrainRequest, given: set[str]) -> None:
    """Set learning rate and warm-up of training from scratch, where none was given."""
    if request.model.model_name_or_path:
        return
    name = str(getattr(request.args.optim, "value", request.args.optim))
    name = "adamw" if name.startswith("adamw_") else name
    if name in FROM_SCRATCH_RATES and "learning_rate" not in given:
        request.args.learning_rate = FROM_SCRATCH_RATES[name]
    if name in FROM_SCRATCH_WARMUP and not {"warmup_steps", "warmup_ratio"} & given:
        request.args.warmup_steps = FROM_SCRATCH_WARMUP[name]
