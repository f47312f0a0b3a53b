"""Load pretrained tokenizers and configurations, and describe fine-tuned models."""

from __future__ import annotations

from pathlib import Path
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

from hf_relopt.errors import ConfigError

PROBE = "The quick brown fox, 狐, лиса, 1."
_OTHER_TOKENIZER = (
    "Save the model's tokenizer there (tokenizer.save_pretrained), or name another one; "
    "pretrain_clm.py takes --tokenizer_name."
)
CHECK_NAME = "Check the name, and whether the hub can be reached."


def named_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of this name on the hub, or in this directory.

    Raises:
        ConfigError: it cannot be loaded.
    """
    folder = Path(name)
    if folder.is_dir() and not any(map(_is_of_a_tokenizer, folder.iterdir())):
        raise ConfigError(f"the folder {name} has no tokenizer files. {_OTHER_TOKENIZER}")
    with blamed_on(f"cannot load the tokenizer {name}", CHECK_NAME):
        tokenizer = AutoTokenizer.from_pretrained(name)
    # Transformers makes an empty one where files are missing.
    known = set(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    if known <= {tokenizer.unk_token_id}:
        raise ConfigError(f"the tokenizer {name} knows no words. {_OTHER_TOKENIZER}")
    return tokenizer


def padding_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The same; where it has no token for padding, the end token takes its place.

    Raises:
        ConfigError: it cannot be loaded.
    """
    tokenizer = named_tokenizer(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _is_of_a_tokenizer(path: Path) -> bool:
    words = ("token", "vocab", "merges", "spiece", "sentencepiece", "tekken", "bpe")
    return path.suffix in (".model", ".spm", ".tiktoken") or any(w in path.name for w in words)


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
