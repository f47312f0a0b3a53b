"""Fine-tune a pretrained model to classify texts, with Fromage.

Without arguments: MiniLM on SST-2, both from the hub. Local models and tables work as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from labelled_text import LabelledSource, encode, load_labelled_text
from offline_metric import load_metric
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
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

METRIC = "eval_accuracy"
SHOWN_TEXTS = 4
DEFAULTS = {
    "run_name": "finetune_classifier",
    "optim": "fromage",
    "lr_scheduler_type": "linear",
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "logging_steps": 20,
    "eval_strategy": "steps",
    "eval_steps": 200,
    "save_steps": 200,
    "save_total_limit": 2,
}
LIMITS = "Fit for texts like those it was trained on; its errors on others are not known."


@dataclass(frozen=True)
class ClassifierArguments:
    """Which pretrained model becomes the classifier."""

    _argument_group_name = "Model"

    model_name_or_path: str = field(
        default="nreimers/MiniLM-L6-H384-uncased",
        metadata={"help": "the pretrained model, from the hub or a directory"},
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "this tokenizer, instead of the model's"}
    )


@dataclass(frozen=True)
class ClassifierRequest:
    """Everything the command line asked for."""

    model: ClassifierArguments
    data: LabelledSource
    run: RunArguments
    args: TrainingArguments


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; a user's mistake ends it with one message and exit code 2."""
    start_recipe(
        ClassifierRequest,
        finetune,
        metric=METRIC,
        defaults=DEFAULTS,
        about=__doc__ or "",
        argv=argv,
    )


def prepare(request: ClassifierRequest) -> Prepared:
    """Texts, tokenizer and model; everything the user can get wrong is tried here."""
    say_main(request.args, f"reading {request.data.words}")
    texts = load_labelled_text(request.data, request.args.seed)
    texts.splits["train"] = limited(texts.splits["train"], request.data.max_train_samples)
    texts.splits["validation"] = limited(texts.splits["validation"], request.data.max_eval_samples)
    name = request.model.tokenizer_name or request.model.model_name_or_path
    tokenizer = named_tokenizer(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = build_classifier(request, tokenizer, class_names(texts.splits))
    check_optimizer(request.args, model)
    return encode(texts, tokenizer, request.data.max_length), tokenizer, model


def build_classifier(
    request: ClassifierRequest, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
) -> PreTrainedModel:
    """The pretrained model with a new head, one output per class."""
    source = request.model.model_name_or_path
    set_seed(request.args.seed)
    with blamed_on(f"cannot load the model {source}", CHECK_NAME):
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def class_names(splits: DatasetDict) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    return splits["train"].features["labels"].names


def finetune(request: ClassifierRequest, run: RecipeRun) -> None:
    """Train, measure and write everything into the run folder."""
    args = request.args
    splits, tokenizer, model = run.prepare(lambda: prepare(request))
    names = class_names(splits)
    model = model or build_classifier(request, tokenizer, names)
    say_main(
        args,
        f"{request.model.model_name_or_path}: {model.num_parameters():,} parameters, "
        f"{len(names)} classes; {len(splits['train']):,} texts to train on, "
        f"{len(splits['validation']):,} to validate on",
    )
    trainer = make_trainer(
        args,
        "texts",
        1,
        model=model,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy_of(load_metric("accuracy_and_f1", args)),
    )
    figures = train_and_measure(trainer)
    # On every rank: where weights are sharded, a forward pass needs all of them.
    figures["sample"] = some_answers(trainer, tokenizer, names)
    finish(
        trainer,
        run.folder,
        figures,
        title=f"{args.run_name}: {optimizer_name(args)} on {request.data.words}",
        card=card_details(request),
        hints=hints(),
    )


def accuracy_of(metric: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's compute_metrics: accuracy and F1 of the likeliest class."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        return metric.compute(
            predictions=np.argmax(logits, axis=-1), references=prediction.label_ids
        )

    return compute


@torch.no_grad()
def some_answers(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, names: list[str]) -> str:
    """The first validation texts with the model's answer and the true one."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    rows = trainer.eval_dataset.select(range(min(SHOWN_TEXTS, len(trainer.eval_dataset))))
    batch = trainer.data_collator([dict(row) for row in rows]).to(model.device)
    truth = batch.pop("labels").tolist()
    answers = model(**batch).logits.argmax(-1).tolist()
    return "\n".join(
        f"{names[answer]} (truth: {names[label]}): "
        f"{tokenizer.decode(row['input_ids'], skip_special_tokens=True)}"
        for answer, label, row in zip(answers, truth, rows, strict=True)
    )


def card_details(request: ClassifierRequest) -> dict[str, Any]:
    """What the card says that the trainer does not know."""
    return fine_tuning_card(
        request.args,
        request.model.model_name_or_path,
        request.data,
        summary=f"{request.model.model_name_or_path} fine-tuned to classify texts of "
        f"{request.data.words}.",
        tasks="text-classification",
        limits=LIMITS,
    )


def hints() -> list[list[str]]:
    """What to try next, each with the command for it."""
    command = f"{python_word()} {script_word()}"
    return [
        ["with Madam", f"{command} --run_name madam --optim madam"],
        [
            "AdamW, to compare",
            f"{command} --run_name adamw --optim adamw_torch --learning_rate 2e-4",
        ],
        ["your own table", f"{command} --run_name mine --train_file mine.csv --text_column TEXT"],
        ["your own script", "import hf_relopt, then pass --optim fromage"],
    ]


if __name__ == "__main__":
    main()
