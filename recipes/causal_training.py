"""Pretraining: a small GPT-2, any configuration or a pretrained model; its training and samples."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from causal_text import collate_blocks, learn_tokenizer, load_documents, make_blocks
from clear_messages import blamed_on
from command_line import check_optimizer
from model_loading import (
    CAUSAL,
    in_codes,
    named_config_of,
    named_model,
    named_tokenizer,
    require_causal,
    require_class,
    require_one_batch,
)
from recipe_run import Prepared, RecipeRun, say_main
from text_tables import limit
from training_session import load_metric, make_trainer, train_and_finish
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    EvalPrediction,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from typed_command import OWN_SCRIPT, Rates, next_steps

from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from pretrain_clm import LanguageModel, PretrainRequest

SMALL_GPT2 = {"n_layer": 3, "n_embd": 256, "n_head": 4}
# A small model's unlikely tokens are nonsense, and what it has said it says again.
SAMPLING = {"top_k": 50, "top_p": 0.9, "temperature": 0.7, "repetition_penalty": 1.1}
SMALL_BLOCK = 128  # tokens
LONGEST_BLOCK = 1024  # tokens; a model that could take more would need too much memory by default
# What the demo's model continues: things that Python's files are full of.
# Without a space at the end: the tokenizer puts it in front of the next word.
DEMO_PROMPTS = ("def main(", "class Test", "    def __init__(self")
DEMO_SAMPLE = 72  # tokens
BETWEEN_SAMPLES = "\n\n"
LIMITS = (
    "A small model after a short training: it shows that training works, and knows nothing. The "
    "text it generates is made up."
)


def prepare(request: PretrainRequest) -> Prepared:
    """Make text, tokenizer, blocks and model; every mistake of the user shows up here."""
    if not request.model.is_small_gpt2:
        named_config(request.model)  # no model of another kind waits for a long text to be read
    say_main(request.args, f"reading {request.data.words}")
    documents = load_documents(request.data)
    tokenizer = load_tokenizer(request.model)
    if tokenizer is None:
        say_main(request.args, f"training a tokenizer of {request.model.vocab_size:,} entries")
        tokenizer = learn_tokenizer(documents["train"], request.model.vocab_size)
    size = block_size_of(request)
    model = build_model(request.model, tokenizer, size, request.args.seed)
    require_causal(model, request.model.words)
    check_optimizer(request.args, model)
    say_main(request.args, f"splitting the text into blocks of {size} tokens")
    blocks = make_blocks(documents, tokenizer, size)
    limit(blocks, request.blocks.max_train_samples, request.validation_blocks)
    require_one_batch(model, collate_blocks, blocks["train"].select([0]), request.model.words)
    return blocks, tokenizer, model


def block_size_of(request: PretrainRequest) -> int:
    """Tokens per sequence."""
    return request.blocks.block_size or longest_block(request.model) or SMALL_BLOCK


def train(request: PretrainRequest, run: RecipeRun) -> None:
    """Train, measure and write everything into the run folder."""
    args, block_size = request.args, block_size_of(request)
    blocks, tokenizer, model = run.prepare(lambda: prepare(request))
    model = model or build_model(request.model, tokenizer, block_size, args.seed)
    say_main(
        args,
        f"{request.model.words}: {model.num_parameters():,} parameters; "
        f"{len(blocks['train']):,} sequences to train on, {len(blocks['validation']):,} to "
        f"validate on, {block_size} tokens each",
    )
    trainer = make_trainer(
        run,
        model,
        blocks,
        tokenizer,
        unit="tokens",
        units_per_sample=block_size,
        data_collator=collate_blocks,
        preprocess_logits_for_metrics=next_token_log_probabilities,
        compute_metrics=perplexity_of(load_metric("token_perplexity", args)),
    )
    train_and_finish(
        trainer,
        run,
        sample=lambda: write_samples(trainer, tokenizer, request),
        summary=f"A causal language model ({request.model.words}) trained on {request.data.words}.",
        tasks="text-generation",
        limits=LIMITS,
        hints=[
            *next_steps(args, Rates(request.rates), "your own text", ["--train_file", "notes.txt"]),
            OWN_SCRIPT,
        ],
    )


def next_token_log_probabilities(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token given those before it: all an evaluation has to keep.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length), the tokens themselves.

    Returns:
        (batch, length - 1), in nats.
    """
    guesses, truth = logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(guesses, truth, reduction="none")
    return -losses.view(len(labels), -1)


def perplexity_of(metric: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's compute_metrics: perplexity, and how many tokens it was measured on."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        found = metric.compute(predictions=prediction.predictions.ravel())
        return {name: found[name] for name in ("perplexity", "tokens")}

    return compute


def write_samples(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, request: PretrainRequest
) -> str:
    """Texts by the trained model: one as long as a block, or of the demo several short ones."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    size, seed = block_size_of(request), request.args.seed
    prompt = request.blocks.sample_prompt
    if prompt is None and request.data.is_standard_library:
        short = min(size, DEMO_SAMPLE)
        texts = [generate_sample(model, tokenizer, each, short, seed) for each in DEMO_PROMPTS]
        return BETWEEN_SAMPLES.join(whole_lines(text) for text in texts)
    if not prompt:
        prompt = tokenizer.decode(trainer.eval_dataset[0]["input_ids"][:16])
    return generate_sample(model, tokenizer, prompt, size, seed)


def whole_lines(text: str) -> str:
    """A text without its last line, which ends where the tokens do, if it has another."""
    return text.rpartition("\n")[0].rstrip() or text


def load_tokenizer(source: LanguageModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the model or configuration that was named; None if one is to be trained."""
    name = source.tokenizer_name or source.model_name_or_path or source.config_name
    if name is None:
        return None
    return named_tokenizer(name)


def longest_block(source: LanguageModel) -> int | None:
    """Tokens the model can take at once, at most LONGEST_BLOCK; None for the small GPT-2."""
    if source.is_small_gpt2:
        return None
    return min(_positions(named_config(source)), LONGEST_BLOCK)


def named_config(source: LanguageModel) -> PreTrainedConfig:
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
    source: LanguageModel, tokenizer: PreTrainedTokenizerBase, block_size: int, seed: int
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
    if source.model_name_or_path:
        named_config(source)
        model = named_model(AutoModelForCausalLM, source.model_name_or_path, seed)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    else:
        config = _new_config(source, tokenizer, block_size)
        set_seed(seed)
        with blamed_on("cannot build the model", "Check the shape that was asked for."):
            model = AutoModelForCausalLM.from_config(config)
    if block_size > _positions(model.config):
        raise ConfigError(
            f"block_size is {block_size}, but the model takes {_positions(model.config)} tokens "
            "at most. Give a smaller --block_size."
        )
    # Class names like GPT2LMHeadModel do not tell Transformers the loss; it would warn.
    model.loss_type = "ForCausalLM"
    return in_codes(model, source)


def _new_config(
    source: LanguageModel, tokenizer: PreTrainedTokenizerBase, block_size: int
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
