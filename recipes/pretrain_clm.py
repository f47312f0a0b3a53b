"""Train a causal language model with fromage_spectral, from scratch or from a pretrained one.

Without arguments: a GPT-2 of a few million parameters on the source text of the Python standard
library, in under four minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from first_look import optimizer_name
from local_files import TABLE_KINDS, check_table, check_text, text_files
from recipe import DEFAULTS, DataSource, ModelSource, Recipe, Request, check_limits, option

from hf_relopt.errors import ConfigError

DEMO_VALIDATION_BLOCKS = 128  # enough for a perplexity good to 1 %, and quick
# Peak learning rates from scratch: the best of those tried (benchmarks/results/demo_*.md), a guess
# for madam. A pretrained model takes the Trainer's own default, and the presets of fromage what
# hf_relopt has for them.
FROM_SCRATCH_RATES = {"fromage": 0.03, "madam": 0.03, "adamw_torch": 0.002}
PRETRAINED_RATES = {"fromage": 0.001, "madam": 0.001, "adamw_torch": 5e-5}
# The share of the steps in which AdamW's learning rate rises; ours do without.
FROM_SCRATCH_WARMUP = {"adamw_torch": 0.1}


@dataclass(frozen=True)
class LanguageModel(ModelSource):
    """Which model to train. Default: a GPT-2 of a few million parameters."""

    model_name_or_path: str | None = option(
        None, "continue training this model, from the hub or a directory"
    )
    config_name: str | None = option(None, "train a model of this configuration from scratch")
    model_type: str | None = option(None, "train this architecture from scratch, as in llama")
    config_overrides: str | None = option(
        None, 'changes to the configuration, as in "n_layer=4,n_embd=256"'
    )
    tokenizer_name: str | None = option(
        None, "this tokenizer, instead of the model's or one trained on the text"
    )
    vocab_size: int = option(4096, "vocabulary size of a tokenizer that is trained on the text")

    def __post_init__(self) -> None:
        shapes = self.config_name or self.model_type or self.config_overrides
        if self.model_name_or_path and shapes:
            raise ConfigError(
                "--config_name, --model_type and --config_overrides shape a model that is trained "
                "from scratch; with --model_name_or_path the shape is that of the pretrained model."
            )
        if self.config_name and self.model_type:
            raise ConfigError(
                "give either --config_name or --model_type; a configuration includes its type."
            )
        if self.vocab_size < 257:
            raise ConfigError(
                f"vocab_size is {self.vocab_size}; it must be 257 or more: 256 bytes and one end "
                "token."
            )

    @property
    def is_small_gpt2(self) -> bool:
        """Whether no model and no configuration was named."""
        return not (self.model_name_or_path or self.config_name or self.model_type)

    @property
    def words(self) -> str:
        """This model in a few words."""
        shape = self.config_name or self.model_type or "GPT-2"
        return self.model_name_or_path or f"{shape}, from scratch"


@dataclass(frozen=True)
class TextSource(DataSource):
    """Where text comes from. Default: the standard library."""

    _argument_group_name = "Text (default: the source text of the Python standard library)"

    train_file: str | None = option(
        None, "local text, .json, .jsonl, .csv, .tsv, .parquet, or a directory of text"
    )
    text_column: str | None = option(None, "column that holds the text, where there are columns")
    validation_share: float = option(0.05, "share split off where there is no validation text")

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

    block_size: int | None = option(
        None, "tokens per sequence (default: 128, or what a named model takes)"
    )
    max_train_samples: int | None = option(None, "train on this many sequences at most")
    max_eval_samples: int | None = option(None, "validate on this many sequences at most")
    sample_prompt: str | None = option(None, "prompt of the sample at the end")

    def __post_init__(self) -> None:
        check_limits(self.max_train_samples, self.max_eval_samples)
        if self.block_size is not None and self.block_size < 2:
            raise ConfigError(
                f"block_size is {self.block_size}; a block needs 2 tokens or more, as in 128."
            )


@dataclass(frozen=True)
class PretrainRequest(Request[LanguageModel, TextSource]):
    """Everything the command line asked for."""

    blocks: BlockArguments

    @property
    def validation_blocks(self) -> int | None:
        """Sequences to validate on at most."""
        demo = DEMO_VALIDATION_BLOCKS if self.data.is_standard_library else None
        return demo if self.blocks.max_eval_samples is None else self.blocks.max_eval_samples

    @property
    def rates(self) -> Mapping[str, float]:
        """The learning rates that suit the model."""
        if self.model.model_name_or_path:
            return {"fromage_spectral": 0.001, **PRETRAINED_RATES}
        return {"fromage_spectral": 0.02, **FROM_SCRATCH_RATES}


def complete(request: PretrainRequest, given: set[str]) -> None:
    """Set learning rate and warm-up of training from scratch, where none was given."""
    if request.model.model_name_or_path:
        return
    name = optimizer_name(request.args)
    name = "adamw_torch" if name.startswith("adamw_") else name
    if name in FROM_SCRATCH_RATES and "learning_rate" not in given:
        request.args.learning_rate = FROM_SCRATCH_RATES[name]
    if name in FROM_SCRATCH_WARMUP and not {"warmup_steps", "warmup_ratio"} & given:
        request.args.warmup_steps = FROM_SCRATCH_WARMUP[name]


RECIPE = Recipe(
    about=__doc__,
    own_kinds=(LanguageModel, TextSource, BlockArguments),
    defaults={
        **DEFAULTS,
        "run_name": "pretrain_clm",
        "max_steps": 400,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "logging_steps": 10,
        "eval_steps": 100,
        "save_steps": 100,
    },
    metric="eval_perplexity",
    work="causal_training",
    request=PretrainRequest,
    complete=complete,
)
main = RECIPE.start

if __name__ == "__main__":
    main()
