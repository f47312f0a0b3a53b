"""The language model to train: a small GPT-2, any configuration, or a pretrained model."""

from __future__ import annotations

import difflib

import torch
from model_kind import CAUSAL, require_class
from model_source import ModelSource
from one_clear_message import blamed_on
from pretrained import CHECK_NAME, named_config_of, named_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_relopt.errors import ConfigError

SMALL_GPT2 = {"n_layer": 3, "n_embd": 256, "n_head": 4}
# A small model's unlikely tokens are nonsense, and what it has said it says again.
SAMPLING = {"top_k": 50, "top_p": 0.9, "temperature": 0.7, "repetition_penalty": 1.1}
LONGEST_BLOCK = 1024  # tokens; a model that could take more would need too much memory by default


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the model or configuration that was named; None if one is to be trained."""
    name = source.tokenizer_name or source.model_name_or_path or source.config_name
    if name is None:
        return None
    return named_tokenizer(name)


def longest_block(source: ModelSource) -> int | None:
    """Tokens the model can take at once, at most LONGEST_BLOCK; None for the small GPT-2."""
    if source.is_small_gpt2:
        return None
    return min(_positions(named_config(source)), LONGEST_BLOCK)


def named_config(source: ModelSource) -> PreTrainedConfig:
    """The shape of the model that was named, changes included; not for the small GPT-2.

    Raises:
        ConfigError: an unknown name, an override that does not fit, no causal language model.
    """
    name = source.model_name_or_path or source.config_name
    if source.model_type:
        config = _typed_config(source.model_type, source.config_overrides)
    else:
        config = _overridden(named_config_of(name or ""), source.config_overrides)
    require_class(config, name or f"--model_type {source.model_type}", CAUSAL)
    return config


def _typed_config(model_type: str, overrides: str | None) -> PreTrainedConfig:
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type.lower(), list(CONFIG_MAPPING), n=1)
        hint = f"Did you mean {near[0]}?" if near else "Give one as in gpt2 or llama."
        raise ConfigError(f"transformers knows no --model_type {model_type[:80]}. {hint}")
    with blamed_on(f"cannot take --model_type {model_type}", "Give one as in gpt2 or llama."):
        config = AutoConfig.for_model(model_type)
    # Made with the changes, not changed afterwards: the size of a head and others follow.
    _overridden(config, overrides)
    names = [change.partition("=")[0].strip() for change in (overrides or "").split(",")]
    changes = {name: getattr(config, name) for name in names if name}
    with blamed_on(f"config_overrides {overrides!r} cannot be used", "Check the shape."):
        return AutoConfig.for_model(model_type, **changes)


def _overridden(config: PreTrainedConfig, overrides: str | None) -> PreTrainedConfig:
    if overrides:
        with blamed_on(
            f"config_overrides {overrides!r} cannot be used",
            'Write name=value with commas, as in "n_layer=4,n_embd=256".',
        ):
            config.update_from_string(overrides)
    return config


def _positions(config: PreTrainedConfig) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else LONGEST_BLOCK


def build_model(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, block_size: int, seed: int
) -> PreTrainedModel:
    """The model, pretrained or to be trained from scratch.

    Args:
        source: which model.
        tokenizer: whose vocabulary a model from scratch gets.
        block_size: tokens it must be able to take at once.
        seed: of the weights of a model from scratch.

    Raises:
        ConfigError: unknown name, an override that does not fit, too few positions.
    """
    set_seed(seed)
    if source.model_name_or_path:
        named_config(source)
        with blamed_on(f"cannot load the model {source.model_name_or_path}", CHECK_NAME):
            model = AutoModelForCausalLM.from_pretrained(source.model_name_or_path)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    else:
        config = _new_config(source, tokenizer, block_size)
        with blamed_on("cannot build the model", "Check the shape that was asked for."):
            model = AutoModelForCausalLM.from_config(config)
    if block_size > _positions(model.config):
        raise ConfigError(
            f"block_size is {block_size}, but the model takes {_positions(model.config)} tokens "
            "at most. Give a smaller --block_size."
        )
    # Class names like GPT2LMHeadModel do not tell Transformers the loss; it would warn.
    model.loss_type = "ForCausalLM"
    return model


def _new_config(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> PreTrainedConfig:
    if source.is_small_gpt2:
        # Dropout guards against seeing a text often; a first pass over it learns faster without.
        config = GPT2Config(
            **SMALL_GPT2, n_positions=block_size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
        config = _overridden(config, source.config_overrides)
    else:
        config = named_config(source)
    config.vocab_size = len(tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    return config


@torch.no_grad()
def generate_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int, seed: int
) -> str:
    """Text the model writes after a prompt.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompt: what to begin with.
        length: tokens in all, prompt included.
        seed: of the choice among the likely tokens.
    """
    set_seed(seed)
    model.eval()
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    ids = inputs["input_ids"][:, : max(1, length // 2)].to(model.device)
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max(1, length - ids.shape[1]),
        do_sample=True,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        **SAMPLING,
    )
    return tokenizer.decode(written[0], skip_special_tokens=True)
