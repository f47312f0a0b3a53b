"""The arguments of `sft_chat.py`, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from data_source import TableSource
from model_source import look_at_names
from recipe import RunArguments

from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from trl import SFTConfig

DEFAULT_DATASET = "trl-lib/Capybara"
DEFAULTS = {
    "run_name": "sft_chat",
    "optim": "fromage_spectral",
    "lr_scheduler_type": "linear",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "logging_steps": 10,
    "logging_first_step": True,
    "eval_strategy": "steps",
    "eval_steps": 200,
    "save_steps": 200,
    "save_total_limit": 2,
}


@dataclass(frozen=True)
class ChatModelArguments:
    """Which chat model is trained, and how much of it."""

    _argument_group_name = "Model"

    model_name_or_path: str = field(
        default="Qwen/Qwen2.5-0.5B-Instruct",
        metadata={"help": "the chat model, from the hub or a directory"},
    )
    lora_rank: int = field(
        default=0, metadata={"help": "train LoRA adapters of this rank; 0: all weights"}
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "LoRA's alpha (default: twice the rank)"}
    )
    lora_target_modules: str = field(
        default="all-linear",
        metadata={
            "help": "where to put the adapters: all-linear, or names of modules between commas"
        },
    )

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ConfigError(
                f"lora_rank is {self.lora_rank}; it is 0 (no LoRA) or more, as in 16."
            )
        if self.lora_alpha is not None and not self.lora_rank:
            raise ConfigError("--lora_alpha needs a --lora_rank, as in 16.")

    def look(self) -> None:
        """Raise a ConfigError for a path where there is no folder."""
        look_at_names(model=self.model_name_or_path)


@dataclass(frozen=True)
class ChatSource(TableSource):
    """Where the examples come from. Default: conversations from the hub."""

    _argument_group_name = f"Examples (default: {DEFAULT_DATASET} from the hub)"
    default_dataset: ClassVar[tuple[str, str | None] | None] = (DEFAULT_DATASET, None)

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "a table (.jsonl, .json, .csv, .parquet) with the columns messages, or "
            "prompt and completion, or text"
        },
    )
    validation_share: float = field(
        default=0.02, metadata={"help": "share split off where there is no validation data"}
    )


@dataclass(frozen=True)
class ChatRequest:
    """Everything the command line asked for."""

    model: ChatModelArguments
    data: ChatSource
    run: RunArguments
    args: SFTConfig


def extras(parts: tuple[object, ...]) -> Mapping[str, str]:
    """The packages that a request needs, each with the extra of hf_relopt that installs it."""
    lora = any(getattr(part, "lora_rank", 0) for part in parts)
    return {"trl": "trl", **({"peft": "peft"} if lora else {})}
