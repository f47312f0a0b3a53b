"""What `hf-relopt distance --batch` runs: both networks, loaded, and a batch read from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from hf_relopt.distance.files import ADAPTER, is_adapter, locate
from hf_relopt.errors import ConfigError, FormatError, RelOptError, one_line

TENSORS = (".safetensors", ".pt", ".pth", ".bin")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
# Lines of a text that are enough to see how an output changes, and tokens of each.
MAX_LINES, MAX_TOKENS = 32, 128


def load_network(source: str) -> nn.Module:
    """The network in a folder or on the hub, of the class that its configuration names, or PEFT's.

    Raises:
        ConfigError: a file alone, which says nothing of how the network runs.
        FormatError: a folder that cannot be loaded.
    """
    path = locate(source)
    if not path.is_dir():
        raise ConfigError(
            f"--batch runs both networks, and {source} is a file of weights alone. Pass a folder "
            "with a config.json."
        )
    try:
        if is_adapter(path):
            return _load_adapter(path)
        names = AutoConfig.from_pretrained(path).architectures or ()
        kinds: list[Any] = [getattr(transformers, name, None) for name in names]
        kind = next(filter(None, kinds), transformers.AutoModel)
        transformers_logging.disable_progress_bar()
        return kind.from_pretrained(path)
    except RelOptError:
        raise
    except Exception as error:  # whatever a damaged folder comes to
        raise FormatError(
            f"{source} cannot be loaded as a network: {one_line(error)}. Leave --batch out to "
            "compare weights alone."
        ) from error


def _load_adapter(path: Path) -> nn.Module:
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ConfigError(
            f"{path} holds an adapter ({ADAPTER}), and --batch runs it by PEFT, which is not "
            "installed: pip install peft."
        ) from error
    base = PeftConfig.from_pretrained(str(path)).base_model_name_or_path
    if not base:
        raise ConfigError(f"{path} does not name its base. Leave --batch out, or merge it first.")
    return PeftModel.from_pretrained(load_network(base), str(path))


def read_batch(file: str, network: nn.Module, folders: list[str]) -> Any:
    """Inputs of ``network``: tensors from a file, or lines of a text by its tokenizer.

    Args:
        file: .safetensors or torch's file of tensors by name of argument; any other is a text.
        network: that will run.
        folders: where to look for a tokenizer, in this order.

    Raises:
        ConfigError: an empty text, or no tokenizer.
        FormatError: a file that cannot be read.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FormatError(f"--batch {file} is no file. Pass a text, or a file of tensors.")
    if path.suffix in TENSORS:
        return _tensors(path)
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(
            f"--batch {file} cannot be read as a text: {one_line(error)}. Pass a text, or tensors "
            f"in a file that ends in {', '.join(TENSORS)}."
        ) from error
    if not lines:
        raise ConfigError(f"--batch {file} is empty. Pass some lines of text.")
    if path.suffix in (".json", ".jsonl"):
        lines = [_text_of(line, file) for line in lines[:MAX_LINES]]
    return _tokenized(lines[:MAX_LINES], network, folders)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch's unpickler fails over a text in many ways
        raise FormatError(f"--batch {path} cannot be read: {one_line(error)}.") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise FormatError(
            f"--batch {path} holds no tensors by name. Save {{'input_ids': ..., ...}} in it."
        )
    return found


def _text_of(line: str, file: str) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise FormatError(f"--batch {file} has a line that is not JSON: {line[:60]!r}.") from error
    values = list(found.values()) if isinstance(found, dict) else [found]
    texts = [value for value in values if isinstance(value, str)]
    if not texts:
        raise FormatError(f"--batch {file} has a line without a text: {line[:60]!r}.")
    return texts[0]


def _tokenized(lines: list[str], network: nn.Module, folders: list[str]) -> dict[str, Tensor]:
    paths = [locate(folder) for folder in folders]
    # Without these files Transformers makes an empty tokenizer of the configuration alone.
    found = [path for path in paths if any((path / name).is_file() for name in TOKENIZERS)]
    if not found:
        raise ConfigError(
            f"--batch has a text, and there is no tokenizer in {' or '.join(folders)}. Save the "
            "tokenizer beside the model, or pass tensors."
        )
    tokenizer = AutoTokenizer.from_pretrained(found[0])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    positions = getattr(network.config, "max_position_embeddings", None) or MAX_TOKENS
    padding = tokenizer.pad_token is not None
    batch = dict(
        tokenizer(
            lines if padding else lines[:1],
            return_tensors="pt",
            padding=padding,
            truncation=True,
            max_length=min(MAX_TOKENS, positions),
        )
    )
    if batch["input_ids"].numel() == 0:
        raise ConfigError("--batch has a text without a token. Pass some lines of text.")
    if "CausalLM" in type(network).__name__ or "LMHead" in type(network).__name__:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        batch["labels"] = batch["input_ids"].masked_fill(mask == 0, -100)
    return batch
