"""Pretraining: text to blocks, a causal language model, its training, samples of its writing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from causal_model import build_model, generate_sample, load_tokenizer, longest_block, named_config
from model_kind import require_causal, require_one_batch
from next_steps import OWN_SCRIPT, Rates, longer, other_optimizers, own_data
from offline_metric import load_metric
from pretrain_arguments import FROM_SCRATCH_RATES, SMALL_BLOCK, PretrainRequest
from recipe_run import Prepared, RecipeRun, limited, say_main
from text_documents import load_documents
from token_blocks import collate_blocks, learn_tokenizer, make_blocks
from training_session import check_optimizer, finish, make_trainer, train_and_measure
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer
from typed_command import typed_command

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
    say_main(request.args, f"reading {request.text.words}")
    documents = load_documents(request.text)
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
    blocks["train"] = limited(blocks["train"], request.blocks.max_train_samples)
    blocks["validation"] = limited(blocks["validation"], request.validation_blocks)
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
        "tokens",
        block_size,
        model=model,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        data_collator=collate_blocks,
        preprocess_logits_for_metrics=next_token_log_probabilities,
        compute_metrics=perplexity_of(load_metric("token_perplexity", args)),
    )
    results = train_and_measure(trainer, run)
    # On every rank: where weights are sharded, a forward pass needs all of them.
    results["sample"] = write_samples(trainer, tokenizer, request)
    results["sequences"] = len(blocks["train"])
    finish(
        trainer,
        run,
        results,
        data=request.text.words,
        card=card_details(request),
        hints=hints(request),
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
    if prompt is None and request.text.is_standard_library:
        short = min(size, DEMO_SAMPLE)
        texts = [generate_sample(model, tokenizer, each, short, seed) for each in DEMO_PROMPTS]
        return BETWEEN_SAMPLES.join(whole_lines(text) for text in texts)
    if not prompt:
        prompt = tokenizer.decode(trainer.eval_dataset[0]["input_ids"][:16])
    return generate_sample(model, tokenizer, prompt, size, seed)


def whole_lines(text: str) -> str:
    """A text without its last line, which ends where the tokens do, if it has another."""
    return text.rpartition("\n")[0].rstrip() or text


def card_details(request: PretrainRequest) -> dict[str, Any]:
    """What the card says that the trainer does not know."""
    return {
        "model_name": request.args.run_name,
        "summary": f"A causal language model ({request.model.words}) trained on "
        f"{request.text.words}.",
        "tasks": "text-generation",
        "finetuned_from": request.model.model_name_or_path,
        "dataset": request.text.words,
        "dataset_tags": request.text.dataset_name,
        "dataset_args": request.text.dataset_config_name,
        "command": str(typed_command()),
        "limits": LIMITS,
    }


def hints(request: PretrainRequest) -> list[tuple[str, str]]:
    """What to try next, each with the command for it."""
    scratch = not request.model.model_name_or_path
    rates = {"fromage_spectral": 0.02, **FROM_SCRATCH_RATES}
    pretrained = {"adamw": 5e-5, **dict.fromkeys(("fromage_spectral", "fromage", "madam"), 0.001)}
    chosen = rates if scratch else pretrained
    return [
        *other_optimizers(request.args, Rates({**chosen, "adamw_torch": chosen["adamw"]})),
        longer(request.args),
        *own_data("your own text", ["--train_file", "notes.txt"]),
        OWN_SCRIPT,
    ]
