"""Load pretrained tokenizers and configurations, and describe fine-tuned models."""

from __future__ import annotations

from typing import Any

from data_source import DataSource
from one_clear_message import blamed_on
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from typed_command import typed_command

CHECK_NAME = "Check the name, and whether the hub can be reached."


def named_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of this name on the hub, or in this directory.

    Raises:
        ConfigError: it cannot be loaded.
    """
    with blamed_on(f"cannot load the tokenizer {name}", CHECK_NAME):
        return AutoTokenizer.from_pretrained(name)


def named_config_of(name: str) -> PreTrainedConfig:
    """The configuration of this name on the hub, or in this directory.

    Raises:
        ConfigError: it cannot be loaded.
    """
    with blamed_on(f"cannot load the model {name}", CHECK_NAME):
        return AutoConfig.from_pretrained(name)


def fine_tuning_card(
    args: TrainingArguments,
    model_name: str,
    data: DataSource,
    *,
    summary: str,
    tasks: str,
    limits: str,
) -> dict[str, Any]:
    """What the card of a fine-tuned model says that the trainer does not know.

    Args:
        model_name: what was fine-tuned.
        data: what on.
        summary, tasks, limits: fields of hf_relopt.hf.model_card.CardDetails.
    """
    hub = data.hub_names
    return {
        "model_name": args.run_name,
        "summary": summary,
        "tasks": tasks,
        "finetuned_from": model_name,
        "dataset": data.words,
        "dataset_tags": hub[0] if hub else None,
        "dataset_args": hub[1] if hub else None,
        "command": str(typed_command()),
        "limits": limits,
    }
