"""Train a causal language model with Fromage, from scratch or from a pretrained one.

Without arguments: a GPT-2 of five million parameters on the source text of the Python standard
library, in under four minutes on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from causal_model import (
    ModelSource,
    build_model,
    generate_sample,
    load_tokenizer,
    longest_block,
)
from offline_metric import load_metric
from one_clear_message import one_clear_message
from recipe_arguments import optimizer_name, parse_recipe_arguments
from recipe_run import (
    Prepared,
    RecipeRun,
    RunArguments,
    limited,
    python_word,
    say_main,
    script_word,
    typed_command,
)
from recipe_start import run_recipe
from text_documents import TextSource, load_documents
from token_blocks import collate_blocks, learn_tokenizer, make_blocks
from training_session import check_optimizer, finish, make_trainer, train_and_measure
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainingArguments

METRIC = "eval_perplexity"
SMALL_BLOCK = 128  # tokens
DEMO_VALIDATION_BLOCKS = 128  # enough for a figure good to 1 %, and quick

DEFAULTS = {
    "run_name": "pretrain_clm",
    "optim": "fromage",
    "lr_scheduler_type": "linear",
    "max_steps": 500,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_steps": 100,
    "save_total_limit": 2,
}
# Peak rates for new weights: the best of those tried for fromage and adamw (README.md beside this
# file), a guess for madam. A pretrained model takes the Trainer's own default rate, and the presets
# of fromage the one that hf_relopt has for them.
RATES_FOR_NEW_WEIGHTS = {"fromage": 0.03, "madam": 0.03, "adamw": 0.002}
LIMITS = (
    "A small model after a short training: it shows what training does, it knows nothing. "
    "Its text is made up."
)


@dataclass(frozen=True)
class BlockArguments:
    """How the text is cut, and how much of it is used."""

    _argument_group_name = "Blocks"

    block_size: int | None = field(
        default=None,
        metadata={"help": "tokens per sequence (default: 128, or what a named model takes)"},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on this many sequences at most"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "validate on this many sequences at most"}
    )
    sample_prompt: str | None = field(
        default=None, metadata={"help": "what the sample at the end begins with"}
    )


@dataclass(frozen=True)
class PretrainRequest:
    """Everything the command line asked for."""

    model: ModelSource
    text: TextSource
    blocks: BlockArguments
    run: RunArguments
    args: TrainingArguments

    @property
    def block_size(self) -> int:
        """Tokens per sequence."""
        return self.blocks.block_size or longest_block(self.model) or SMALL_BLOCK

    @property
    def validation_blocks(self) -> int | None:
        """Sequences to validate on at most."""
        demo = DEMO_VALIDATION_BLOCKS if self.text.is_standard_library else None
        return demo if self.blocks.max_eval_samples is None else self.blocks.max_eval_samples


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; a user's mistake ends it with one message and exit code 2."""
    with one_clear_message():
        request, given = read_request(sys.argv[1:] if argv is None else argv)
        sources = (request.model, request.text, request.blocks)
        run_recipe(request, sources, given, pretrain, metric=METRIC)


def read_request(argv: Sequence[str]) -> tuple[PretrainRequest, set[str]]:
    """The command line, with our defaults where the user said nothing."""
    kinds = (ModelSource, TextSource, BlockArguments, RunArguments, TrainingArguments)
    defaults = {**DEFAULTS, "dataloader_pin_memory": torch.cuda.is_available()}
    parts, given = parse_recipe_arguments(kinds, defaults=defaults, about=__doc__, argv=argv)
    request = PretrainRequest(*parts)
    args = request.args
    name = optimizer_name(args)
    rate = RATES_FOR_NEW_WEIGHTS.get("adamw" if name.startswith("adamw_") else name)
    if rate and "learning_rate" not in given and not request.model.model_name_or_path:
        args.learning_rate = rate
    return request, given


def prepare(request: PretrainRequest) -> Prepared:
    """Text, tokenizer, blocks and model; everything the user can get wrong is tried here."""
    say_main(request.args, f"reading {request.text.words}")
    documents = load_documents(request.text)
    tokenizer = load_tokenizer(request.model)
    if tokenizer is None:
        say_main(request.args, f"learning a tokenizer of {request.model.vocab_size:,} entries")
        tokenizer = learn_tokenizer(documents["train"], request.model.vocab_size)
    model = build_model(request.model, tokenizer, request.block_size, request.args.seed)
    check_optimizer(request.args, model)
    say_main(request.args, f"cutting the text into blocks of {request.block_size} tokens")
    blocks = make_blocks(documents, tokenizer, request.block_size)
    blocks["train"] = limited(blocks["train"], request.blocks.max_train_samples)
    blocks["validation"] = limited(blocks["validation"], request.validation_blocks)
    return blocks, tokenizer, model


def pretrain(request: PretrainRequest, run: RecipeRun) -> None:
    """Train, measure and write everything into the run folder."""
    args, block_size = request.args, request.block_size
    blocks, tokenizer, model = run.prepare(lambda: prepare(request))
    model = model or build_model(request.model, tokenizer, block_size, args.seed)
    say_main(
        args,
        f"{request.model.words}: {model.num_parameters():,} parameters; "
        f"{len(blocks['train']):,} sequences to train on, {len(blocks['validation']):,} to "
        f"validate on, {block_size} tokens each",
    )
    trainer = make_trainer(
        args,
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
    figures = train_and_measure(trainer)
    # On every rank: where weights are sharded, a forward pass needs all of them.
    figures["sample"] = write_sample(trainer, tokenizer, request)
    finish(
        trainer,
        run.folder,
        figures,
        title=f"{args.run_name}: {optimizer_name(args)} on {request.text.words}",
        card=card_details(request),
        hints=hints(),
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


def write_sample(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, request: PretrainRequest
) -> str:
    """A text by the trained model, as long as a block."""
    prompt = request.blocks.sample_prompt
    if prompt is None and request.text.is_standard_library:
        prompt = "def "
    if not prompt:
        prompt = tokenizer.decode(trainer.eval_dataset[0]["input_ids"][:16])
    model = trainer.accelerator.unwrap_model(trainer.model)
    return generate_sample(model, tokenizer, prompt, request.block_size, request.args.seed)


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
        "command": typed_command(),
        "limits": LIMITS,
    }


def hints() -> list[list[str]]:
    """What to try next, each with the command for it."""
    command = f"{python_word()} {script_word()}"
    return [
        ["longer", f"{command} --run_name longer --max_steps 3000"],
        ["with Madam", f"{command} --run_name madam --optim madam"],
        ["AdamW, to compare", f"{command} --run_name adamw --optim adamw_torch"],
        ["your own text", f"{command} --run_name mine --train_file notes.txt"],
        ["your own script", "import hf_relopt, then pass --optim fromage"],
    ]


if __name__ == "__main__":
    main()
