"""Fine-tuning a chat model with TRL's SFTTrainer, all weights or LoRA adapters.

The examples are conversations, prompts with answers, or plain texts: from the hub or local files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from clear_messages import blamed_on
from command_line import check_optimizer
from datasets import Dataset, DatasetDict
from first_look import optimizer_name
from model_loading import (
    CAUSAL,
    in_codes,
    named_model,
    padding_tokenizer,
    require_causal,
    require_vocabulary,
)
from recipe import Request
from recipe_run import Prepared, RecipeRun, say_main
from text_tables import load_tables
from training_session import make_trainer, read_data, train_and_finish
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Trainer
from trl import SFTTrainer
from typed_command import Rates, next_steps, typed_command

from hf_relopt import RelOptMixin
from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from sft_chat import ChatModel, ChatSource

    ChatRequest = Request[ChatModel, ChatSource]

NEW_TOKENS = 48
LIMITS = (
    "It writes what is likely, not what is true. It was trained on few conversations and not "
    "checked."
)
# None is tuned on conversations. AdamW's for all weights is TRL's own default.
RATES = Rates({"fromage_spectral": 0.001, "adamw_torch": 2e-5, "fromage": 0.001, "madam": 0.001})
LORA_RATES = Rates(
    {"fromage_spectral": 0.03, "adamw_torch": 2e-4, "fromage": 0.03, "madam": 0.03},
    said=("adamw_torch",),
)
# What TRL's SFTTrainer knows, in the order in which it is looked for.
FORMS = (("messages",), ("prompt", "completion"), ("text",))


class RelOptSFTTrainer(RelOptMixin, SFTTrainer):
    """SFTTrainer with our plan, telemetry and checks."""


def prepare(request: ChatRequest) -> Prepared:
    """Make examples, tokenizer and model; every mistake of the user shows up here."""
    splits = read_data(request, CAUSAL, load_examples)
    name = request.model.model_name_or_path
    tokenizer = padding_tokenizer(name)
    if "messages" in splits["train"].column_names and not tokenizer.chat_template:
        raise ConfigError(
            f"{name} has no chat template, so conversations cannot be formatted. Use a chat "
            "model, or data with prompt and completion, or text."
        )
    model = build_model(request)
    require_vocabulary(model, tokenizer, name)
    require_causal(model, name)
    check_optimizer(request.args, model)
    return splits, tokenizer, model


def build_model(request: ChatRequest) -> Any:
    """The chat model, with new LoRA adapters if the user wants them."""
    name, seed = request.model.model_name_or_path, request.args.seed
    dtype = getattr(torch, request.model.model_dtype)
    model = named_model(AutoModelForCausalLM, name, seed, dtype=dtype)
    if not request.model.lora_rank:
        return in_codes(model, request.model)
    from peft import LoraConfig, get_peft_model

    where = request.model.lora_target_modules
    config = LoraConfig(
        r=request.model.lora_rank,
        lora_alpha=request.model.lora_alpha or 2 * request.model.lora_rank,
        target_modules=where if where == "all-linear" else where.split(","),
        task_type="CAUSAL_LM",
    )
    with blamed_on(f"cannot add LoRA adapters to {where}", "Check --lora_target_modules."):
        return get_peft_model(model, config)


def train(request: ChatRequest, run: RecipeRun) -> None:
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
    trainer = make_trainer(run, model, splits, tokenizer, unit="examples", kind=RelOptSFTTrainer)
    how = f" with LoRA of rank {request.model.lora_rank}" if request.model.lora_rank else ""
    train_and_finish(
        trainer,
        run,
        sample=lambda: an_answer(trainer, tokenizer, splits["validation"]),
        summary=f"{request.model.model_name_or_path} fine-tuned{how} on {request.data.words}.",
        tasks="text-generation",
        limits=LIMITS,
        hints=hints(request),
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


def hints(request: ChatRequest) -> list[tuple[str, str]]:
    """What to try next, each with the command for it."""
    chats = ["--train_file", "chats.jsonl"]
    lora = request.model.lora_rank > 0
    coded = optimizer_name(request.args) == "integer_madam"
    with_lora = typed_command().changed("lora", ["--lora_rank", "16"], without=("learning_rate",))
    return [
        *([] if lora or coded else [("with LoRA", str(with_lora))]),
        *next_steps(request.args, LORA_RATES if lora else RATES, "your own chats", chats),
    ]


def load_examples(source: ChatSource, seed: int) -> DatasetDict:
    """Read "train" and "validation", with the columns of one of FORMS.

    Raises:
        ConfigError: a missing or empty file, or none of the forms.
    """
    tables = load_tables(source, seed)
    form = form_of(tables["train"], source.words)
    missing = set(form) - set(tables["validation"].column_names)
    if missing:
        raise ConfigError(f"the validation data of {source.words} has no column {missing.pop()!r}.")
    return DatasetDict({name: table.select_columns(form) for name, table in tables.items()})


def form_of(table: Dataset, words: str) -> list[str]:
    """The columns to train on."""
    for form in FORMS:
        if set(form) <= set(table.column_names):
            return list(form)
    raise ConfigError(
        f"{words} has the columns {', '.join(table.column_names)}; it needs messages (lists of "
        "role and content), or prompt and completion, or text. Rename a column."
    )
