"""Fine-tune a chat model on conversations with TRL's SFTTrainer and fromage_spectral.

All weights, or LoRA adapters with --lora_rank. Without arguments: Qwen2.5-0.5B-Instruct on
Capybara, both from the hub. Local models and files work as well. Needs trl, and peft for
--lora_rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from recipe import DEFAULTS, ModelSource, Recipe, TableSource, option, pretrained

from hf_relopt.errors import ConfigError


@dataclass(frozen=True)
class ChatModel(ModelSource):
    """Which chat model is trained, and how much of it."""

    model_name_or_path: str = pretrained("Qwen/Qwen2.5-0.5B-Instruct", "chat")
    model_dtype: str = option(
        "float32",
        "dtype of the weights: float32, or bfloat16, which takes half of the memory and is rounded "
        "stochastically",
    )
    lora_rank: int = option(0, "train LoRA adapters of this rank; 0: all weights")
    lora_alpha: int | None = option(None, "LoRA's alpha (default: twice the rank)")
    lora_target_modules: str = option(
        "all-linear",
        "where to put the adapters: all-linear, or names of modules between commas",
    )

    def __post_init__(self) -> None:
        if self.model_dtype not in ("float32", "bfloat16"):
            raise ConfigError(
                f"model_dtype is {self.model_dtype!r}; it is float32 or bfloat16. For passes in "
                "float16 over float32 weights use --fp16."
            )
        if self.lora_rank < 0:
            raise ConfigError(
                f"lora_rank is {self.lora_rank}; it is 0 (no LoRA) or more, as in 16."
            )
        if self.lora_alpha is not None and not self.lora_rank:
            raise ConfigError("--lora_alpha needs a --lora_rank, as in 16.")
        if self.lora_rank and self.lns_format:
            raise ConfigError(
                f"--lns_format is {self.lns_format!r} beside --lora_rank, whose adapters stay "
                "numbers. Leave one of them out."
            )


@dataclass(frozen=True)
class ChatSource(TableSource):
    """Where the examples come from. Default: conversations from the hub."""

    _argument_group_name = "Examples (default: trl-lib/Capybara from the hub)"
    default_dataset: ClassVar[tuple[str, str | None] | None] = ("trl-lib/Capybara", None)

    train_file: str | None = option(
        None,
        "a table (.jsonl, .json, .csv, .parquet) with the columns messages, or prompt and "
        "completion, or text",
    )
    validation_share: float = option(0.02, "share split off where there is no validation data")


def extras(parts: tuple[object, ...]) -> Mapping[str, str]:
    """The packages that a request needs, each with the extra of hf_relopt that installs it."""
    lora = any(getattr(part, "lora_rank", 0) for part in parts)
    return {"trl": "trl", **({"peft": "peft"} if lora else {})}


RECIPE = Recipe(
    about=__doc__,
    own_kinds=(ChatModel, ChatSource),
    defaults={
        **DEFAULTS,
        "run_name": "sft_chat",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "logging_steps": 10,
        "eval_steps": 200,
        "save_steps": 200,
    },
    metric="eval_loss",
    work="chat_training",
    training=("trl", "SFTConfig"),
    extras=extras,
)
main = RECIPE.start

if __name__ == "__main__":
    main()
