"""Fine-tuning a chat model: conversations, TRL's SFTTrainer, all weights or LoRA adapters."""

from __future__ import annotations

from typing import Any

import torch
from chat_arguments import ChatRequest
from chat_examples import load_examples
from datasets import Dataset
from model_kind import CAUSAL, require_causal, require_class, require_vocabulary
from next_steps import Rates, longer, other_optimizers, own_data
from one_clear_message import blamed_on
from pretrained import CHECK_NAME, fine_tuning_card, named_config_of, padding_tokenizer
from recipe_run import Prepared, RecipeRun, limited, say_main
from training_session import check_optimizer, finish, make_trainer, train_and_measure
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Trainer, set_seed
from trl import SFTTrainer
from typed_command import typed_command

from hf_relopt import RelOptMixin
from hf_relopt.errors import ConfigError

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


class RelOptSFTTrainer(RelOptMixin, SFTTrainer):
    """SFTTrainer with our plan, telemetry and checks."""


def prepare(request: ChatRequest) -> Prepared:
    """Make examples, tokenizer and model; every mistake of the user shows up here."""
    name = request.model.model_name_or_path
    require_class(named_config_of(name), name, CAUSAL)
    say_main(request.args, f"reading {request.data.words}")
    splits = load_examples(request.data, request.args.seed)
    splits["train"] = limited(splits["train"], request.data.max_train_samples)
    splits["validation"] = limited(splits["validation"], request.data.max_eval_samples)
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
    trainer = make_trainer(
        run,
        "examples",
        1,
        kind=RelOptSFTTrainer,
        model=model,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
    )
    results = train_and_measure(trainer, run)
    if trainer.is_world_process_zero():
        results["sample"] = an_answer(trainer, tokenizer, splits["validation"])
    finish(
        trainer,
        run,
        results,
        data=request.data.words,
        card=card_details(request),
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


def hints(request: ChatRequest) -> list[tuple[str, str]]:
    """What to try next, each with the command for it."""
    lora = request.model.lora_rank > 0
    with_lora = typed_command().changed("lora", ["--lora_rank", "16"], without=("learning_rate",))
    return [
        *([] if lora else [("with LoRA", str(with_lora))]),
        *other_optimizers(request.args, LORA_RATES if lora else RATES),
        longer(request.args),
        *own_data("your own chats", ["--train_file", "chats.jsonl"]),
    ]
