"""The language model to train: a small GPT-2, any configuration, or a pretrained model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from one_clear_message import blamed_on
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hf_relopt.errors import ConfigError

SMALL_GPT2 = {"n_layer": 5, "n_embd": 256, "n_head": 4}
LONGEST_BLOCK = 1024  # tokens; a model that could take more would need too much memory by default
CHECK_NAME = "Check the name, and whether the hub can be reached."


@dataclass(frozen=True)
class ModelSource:
    """Which model to train. With nothing given: a GPT-2 of about five million parameters."""

    _argument_group_name = "Model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "go on training this model, from the hub or a directory"}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "new weights in the shape of this configuration"}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": 'changes to the shape, as in "n_layer=4,n_embd=256"'}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "this tokenizer, instead of the model's or a learned one"}
    )
    vocab_size: int = field(
        default=4096, metadata={"help": "size of the tokenizer learned from the text, if one is"}
    )

    def __post_init__(self) -> None:
        if self.model_name_or_path and (self.config_name or self.config_overrides):
            raise ConfigError(
                "--config_name and --config_overrides shape new weights; with "
                "--model_name_or_path the shape is that of the pretrained model."
            )

    @property
    def is_small_gpt2(self) -> bool:
        """Whether no model and no configuration was named."""
        return not (self.model_name_or_path or self.config_name)

    @property
    def words(self) -> str:
        """This model in a few words."""
        return self.model_name_or_path or f"new weights, {self.config_name or 'GPT-2'}"


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the model or configuration that was named; None if one is to be learned."""
    name = source.tokenizer_name or source.model_name_or_path or source.config_name
    if name is None:
        return None
    with blamed_on(f"cannot load the tokenizer {name}", CHECK_NAME):
        return AutoTokenizer.from_pretrained(name)


def longest_block(source: ModelSource) -> int | None:
    """Tokens the model can take at once, at most LONGEST_BLOCK; None for the small GPT-2."""
    name = source.model_name_or_path or source.config_name
    return None if name is None else min(_positions(_named_config(name)), LONGEST_BLOCK)


def _named_config(name: str) -> PreTrainedConfig:
    with blamed_on(f"cannot load the model {name}", CHECK_NAME):
        return AutoConfig.from_pretrained(name)


def _positions(config: PreTrainedConfig) -> int:
    return getattr(config, "max_position_embeddings", None) or LONGEST_BLOCK


def build_model(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, block_size: int, seed: int
) -> PreTrainedModel:
    """The model with pretrained or new weights.

    Args:
        source: which model.
        tokenizer: whose vocabulary new weights get.
        block_size: tokens it must be able to take at once.
        seed: of new weights.

    Raises:
        ConfigError: unknown name, an override that does not fit, too few positions.
    """
    set_seed(seed)
    if source.model_name_or_path:
        with blamed_on(f"cannot load the model {source.model_name_or_path}", CHECK_NAME):
            model = AutoModelForCausalLM.from_pretrained(source.model_name_or_path)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    else:
        config = _new_config(source, tokenizer, block_size)
        with blamed_on("cannot build the model", "Check --config_name and --config_overrides."):
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
    if source.config_name:
        config = _named_config(source.config_name)
    else:
        # Dropout guards against seeing a text often; a first pass over it learns faster without.
        config = GPT2Config(
            **SMALL_GPT2, n_positions=block_size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
    if source.config_overrides:
        with blamed_on(
            f"config_overrides {source.config_overrides!r} cannot be used",
            'Write name=value with commas, as in "n_layer=4,n_embd=256".',
        ):
            config.update_from_string(source.config_overrides)
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
        seed: of the choice among the likeliest 50 tokens.
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
        top_k=50,
        temperature=0.8,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )
    return tokenizer.decode(written[0], skip_special_tokens=True)
