"""Fine-tune a chat model on conversations with TRL's SFTTrainer and Fromage, whole or with LoRA.

Without arguments: Qwen2.5-0.5B-Instruct on Capybara, both from the hub. Local models and files work
as well. Needs trl, and peft for --lora_rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from chat_examples import ChatSource, load_examples
from datasets import Dataset
from one_clear_message import blamed_on
from pretrained import CHECK_NAME, fine_tuning_card, named_tokenizer
from recipe_arguments import optimizer_name
from recipe_run import (
    Prepared,
    RecipeRun,
    RunArguments,
    limited,
    python_word,
    say_main,
    script_word,
)
from recipe_start import start_recipe
from training_session import check_optimizer, finish, make_trainer, train_and_measure
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from hf_relopt import RelOptMixin
from hf_relopt.errors import ConfigError

METRIC = "eval_loss"
NEW_TOKENS = 48
DEFAULTS = {
    "run_name": "sft_chat",
    "optim": "fromage",
    "lr_scheduler_type": "linear",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 200,
    "save_steps": 200,
    "save_total_limit": 2,
}
LIMITS = "Says what is likely, not what is true; trained on few conversations and not checked."


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
        default=None, metadata={"help": "their scale (default: twice the rank)"}
    )
    lora_target_modules: str = field(
        default="all-linear",
        metadata={"help": "where: all-linear, or names of modules between commas"},
    )

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ConfigError(
                f"lora_rank is {self.lora_rank}; it is 0 (no LoRA) or more, as in 16."
            )
        if self.lora_alpha is not None and not self.lora_rank:
            raise ConfigError("--lora_alpha needs a --lora_rank, as in 16.")


@dataclass(frozen=True)
class ChatRequest:
    """Everything the command line asked for."""

    model: ChatModelArguments
    data: ChatSource
    run: RunArguments
    args: SFTConfig


class RelOptSFTTrainer(RelOptMixin, SFTTrainer):
    """SFTTrainer with our plan, telemetry and checks."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; a user's mistake ends it with one message and exit code 2."""
    start_recipe(
        ChatRequest,
        finetune,
        metric=METRIC,
        defaults={
            **DEFAULTS,
            # SFTConfig's own default is bfloat16 everywhere, and an error on a CPU.
            "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        },
        about=__doc__ or "",
        argv=argv,
    )


def prepare(request: ChatRequest) -> Prepared:
    """Examples, tokenizer and model; everything the user can get wrong is tried here."""
    say_main(request.args, f"reading {request.data.words}")
    splits = load_examples(request.data, request.args.seed)
    splits["train"] = limited(splits["train"], request.data.max_train_samples)
    splits["validation"] = limited(splits["validation"], request.data.max_eval_samples)
    name = request.model.model_name_or_path
    tokenizer = named_tokenizer(name)
    if "messages" in splits["train"].column_names and not tokenizer.chat_template:
        raise ConfigError(
            f"{name} has no chat template, so it does not say how a conversation is written. Take "
            "a chat model, or data with prompt and completion, or text."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = build_model(request)
    check_optimizer(request.args, model)
    return splits, tokenizer, model


def build_model(request: ChatRequest) -> Any:
    """The chat model, with fresh LoRA adapters if they were asked for."""
    source = request.model.model_name_or_path
    set_seed(request.args.seed)
    with blamed_on(f"cannot load the model {source}", CHECK_NAME):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if not request.model.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    where = request.model.lora_target_modules
    config = LoraConfig(
        r=request.model.lora_rank,
        lora_alpha=request.model.lora_alpha or 2 * request.model.lora_rank,
        target_modules=where if where == "all-linear" else where.split(","),
        task_type="CAUSAL_LM",
    )
    with blamed_on(f"cannot put LoRA on {where}", "Check --lora_target_modules."):
        return get_peft_model(model, config)


def finetune(request: ChatRequest, run: RecipeRun) -> None:
    """Train, measure and write everything into the run folder."""
    args = request.args
    splits, tokenizer, model = run.prepare(lambda: prepare(request))
    model = model or build_model(request)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    say_main(
        args,
        f"{request.model.model_name_or_path}: {trained:,} parameters to train; "
        f"{len(splits['train']):,} examples, {len(splits['validation']):,} to validate on",
    )
    trainer = make_trainer(
        args,
        "examples",
        1,
        kind=RelOptSFTTrainer,
        model=model,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
    )
    figures = train_and_measure(trainer)
    if trainer.is_world_process_zero():
        figures["sample"] = an_answer(trainer, tokenizer, splits["validation"])
    finish(
        trainer,
        run.folder,
        figures,
        title=f"{args.run_name}: {optimizer_name(args)} on {request.data.words}",
        card=card_details(request),
        hints=hints(),
    )


@torch.no_grad()
def an_answer(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, examples: Dataset
) -> str | None:
    """The model's answer to the first validation example; None for plain texts or under FSDP."""
    row = examples[0]
    if "text" in row or trainer.is_fsdp_enabled:
        return None
    if "messages" in row:
        asked = [dict(message) for message in row["messages"]]
        while asked and asked[-1]["role"] == "assistant":
            asked.pop()
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        shown = asked[-1]["content"] if asked else ""
    else:
        prompt = shown = row["prompt"]
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    inputs.pop("token_type_ids", None)
    given = inputs["input_ids"].shape[1]
    room = getattr(model.config, "max_position_embeddings", given + NEW_TOKENS) - given
    if room < 1:
        return None
    made = model.generate(
        **inputs,
        max_new_tokens=min(NEW_TOKENS, room),
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    answer = tokenizer.decode(made[0, given:], skip_special_tokens=True)
    return f"{shown}\n-> {answer}"


def card_details(request: ChatRequest) -> dict[str, Any]:
    """What the card says that the trainer does not know."""
    how = f" with LoRA of rank {request.model.lora_rank}" if request.model.lora_rank else ""
    return fine_tuning_card(
        request.args,
        request.model.model_name_or_path,
        request.data,
        summary=f"{request.model.model_name_or_path} fine-tuned{how} on {request.data.words}.",
        tasks="text-generation",
        limits=LIMITS,
    )


def hints() -> list[list[str]]:
    """What to try next, each with the command for it."""
    command = f"{python_word()} {script_word()}"
    return [
        ["with LoRA", f"{command} --run_name lora --lora_rank 16"],
        ["with Madam", f"{command} --run_name madam --optim madam"],
        [
            "AdamW, to compare",
            f"{command} --run_name adamw --optim adamw_torch --learning_rate 2e-5",
        ],
        ["your own chats", f"{command} --run_name mine --train_file chats.jsonl"],
    ]


if __name__ == "__main__":
    main()
