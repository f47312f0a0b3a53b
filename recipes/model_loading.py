"""Load models and tokenizers by name; refuse those that a recipe cannot train.

Before anything is written: Transformers also makes a "causal language model" of a BERT, which then
sees the tokens it has to predict. Its loss falls, but the model is useless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from clear_messages import blamed_on, is_full_disk, reason
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.models.auto import modeling_auto

from hf_relopt import compress
from hf_relopt.errors import ConfigError
from hf_relopt.lns.scale import HEADROOM
from hf_relopt.lns.tensor import is_lns

if TYPE_CHECKING:
    from recipe import ModelSource

PROBE = "The quick brown fox, 狐, лиса, 1."
_OTHER_TOKENIZER = (
    "Save the model's tokenizer there (tokenizer.save_pretrained), or name another one; "
    "pretrain_clm.py takes --tokenizer_name."
)
# As Madam's p_scale from scratch.
FROM_SCRATCH_HEADROOM = 5.0
CHECK_NAME = "Check the name, and whether the hub can be reached."
CAUSAL, CLASSIFIER, ANSWERER = "causal language model", "classifier", "question answerer"
_CLASSES: dict[str, Mapping[str, Any]] = {
    CAUSAL: modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    CLASSIFIER: modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ANSWERER: modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}
_EXAMPLES = {
    CAUSAL: "Name one that predicts the next token, as in gpt2, llama or qwen2",
    CLASSIFIER: "Name a text model, as in bert, roberta or gpt2",
    ANSWERER: "Name a text model with a class for question answering, as in bert, roberta or gpt2",
}
# Tokens of the probe: the first half stays, the second is exchanged.
_PROBE, _ROWS = 8, 4
# What rounding may change of a logit, in units of the largest.
_ROUNDING = 1e-5


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


def named_model(kind: Any, name: str, seed: int, **options: Any) -> PreTrainedModel:
    """The model of this name on the hub, or in this directory.

    Args:
        kind: one of transformers' Auto classes.
        name: of the model.
        seed: of weights that it does not come with, as those of a new task head.
        options: more for `from_pretrained`.

    Raises:
        ConfigError: it cannot be loaded.
    """
    set_seed(seed)
    with blamed_on(f"cannot load the model {name}", CHECK_NAME):
        return kind.from_pretrained(name, **options)


def in_codes(model: PreTrainedModel, source: ModelSource) -> PreTrainedModel:
    """The model, its matrices and embeddings in codes if that was asked for.

    Weights from scratch have more room to grow.

    Raises:
        ConfigError: it is in codes already.
    """
    if not source.lns_format:
        return model
    if any(map(is_lns, model.parameters())):
        raise ConfigError(
            f"lns_format is {source.lns_format!r}, and {source.model_name_or_path} is stored in "
            "codes already. Leave --lns_format out, or name the model in numbers."
        )
    headroom = HEADROOM if source.model_name_or_path else FROM_SCRATCH_HEADROOM
    return compress(model, source.lns_format, headroom=headroom)


def require_class(config: PreTrainedConfig, name: str, kind: str) -> None:
    """Raise a ConfigError if transformers has no class of this kind for a configuration.

    Args:
        config: of the model.
        name: of the model, as the user gave it.
        kind: CAUSAL, CLASSIFIER or ANSWERER.
    """
    known = config.model_type in _CLASSES[kind] or _has_code_of_its_own(config)
    if known and not (kind == CAUSAL and getattr(config, "is_encoder_decoder", False)):
        return
    what = "an encoder-decoder" if getattr(config, "is_encoder_decoder", False) else "a model"
    raise ConfigError(
        f"{name} is {what} of type {config.model_type}, which cannot be trained as a {kind}. "
        f"{_EXAMPLES[kind]}."
    )


def _has_code_of_its_own(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "auto_map", None))


@torch.no_grad()
def require_causal(model: PreTrainedModel, name: str) -> None:
    """Raise a ConfigError if a model's logits for a token depend on later tokens.

    Tried, not looked up: whether an architecture is causal depends on its configuration as well.

    Args:
        model: a language model; its mode and the random numbers stay as they were.
        name: of the model, as the user gave it.
    """
    size = model.get_input_embeddings().weight.shape[0]
    positions = getattr(model.config, "max_position_embeddings", None) or _PROBE
    length = max(2, min(_PROBE, positions))
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(size, (_ROWS, length), generator=generator)
    second = torch.randint(size, (_ROWS, length), generator=generator)
    kept = length // 2
    second[:, :kept] = first[:, :kept]
    was_training = model.training
    model.eval()
    try:
        early = [_logits(model, ids)[:, :kept].float() for ids in (first, second)]
    except Exception:
        return  # it wants more than tokens, and require_one_batch says so
    finally:
        model.train(was_training)
    change = (early[0] - early[1]).abs().max().item()
    if not change <= _ROUNDING * max(early[0].abs().max().item(), 1e-3):
        raise ConfigError(
            f"{name} ({type(model).__name__}) is not a causal language model: its prediction of a "
            "token depends on later tokens, so it would see what it has to predict. "
            f"{_EXAMPLES[CAUSAL]}."
        )


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    ids = ids.to(model.device)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def require_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Raise a ConfigError if a tokenizer has tokens for which a model has no embedding.

    Args:
        model: to be trained, as it was loaded.
        tokenizer: that makes its input.
        name: of the model, as the user gave it.
    """
    size, needed = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if needed > size:
        raise ConfigError(
            f"{name} has embeddings for {size:,} tokens, and the tokenizer {needed:,}: they do not "
            "belong together. Name the model's own tokenizer, or another model."
        )


def require_one_batch(
    model: PreTrainedModel, collate: Callable[[list[dict[str, Any]]], Any], rows: Any, name: str
) -> None:
    """Raise a ConfigError if a model returns no loss for two rows of the data.

    Args:
        model: to be trained.
        collate: makes a batch of rows.
        rows: the data set, of which the first and the longest row are taken.
        name: of the model, as the user gave it.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            lengths = [len(ids) for ids in rows["input_ids"]]
            longest = lengths.index(max(lengths))
            batch = collate([dict(rows[0]), dict(rows[longest])])
            tensors = {key: value.to(model.device) for key, value in batch.items()}
            loss = model(**tensors).loss
    except Exception as error:
        if is_full_disk(error):
            raise
        raise ConfigError(
            f"{name} ({type(model).__name__}) cannot be trained on this data: {reason(error)}. "
            "Name another model or tokenizer, or shorter sequences."
        ) from error
    finally:
        model.train(was_training)
    if loss is None:
        raise ConfigError(
            f"{name} ({type(model).__name__}) returns no loss for this data. Name another model."
        )
