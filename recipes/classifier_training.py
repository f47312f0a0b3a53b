"""Fine-tuning a classifier: texts with labels, a pretrained model with a new task head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from classifier_arguments import ClassifierRequest
from datasets import DatasetDict
from labelled_text import encode, load_labelled_text
from model_kind import CLASSIFIER, require_class, require_one_batch, require_vocabulary
from next_steps import OWN_SCRIPT, Rates, longer, other_optimizers, own_data
from offline_metric import load_metric
from one_clear_message import blamed_on
from pretrained import CHECK_NAME, fine_tuning_card, named_config_of, padding_tokenizer
from recipe_run import Prepared, RecipeRun, limited, say_main
from training_session import check_optimizer, finish, make_trainer, train_and_measure
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)

SHOWN_TEXTS = 4
LIMITS = "Intended for texts like those it was trained on; its errors on other texts are unknown."
# The best of those tried on SST-2 (benchmarks/results/quality_sst2_cpu_202611.md). Those of Fromage
# and the preset are what hf_relopt takes for any pretrained model.
RATES = Rates(
    {"fromage_spectral": 0.001, "adamw_torch": 2e-4, "fromage": 0.001, "madam": 0.003},
    said=("adamw_torch", "madam"),
)


def prepare(request: ClassifierRequest) -> Prepared:
    """Make texts, tokenizer and model; every mistake of the user shows up here."""
    source = request.model.model_name_or_path
    require_class(named_config_of(source), source, CLASSIFIER)
    say_main(request.args, f"reading {request.data.words}")
    texts = load_labelled_text(request.data, request.args.seed)
    texts.splits["train"] = limited(texts.splits["train"], request.data.max_train_samples)
    texts.splits["validation"] = limited(texts.splits["validation"], request.data.max_eval_samples)
    tokenizer = padding_tokenizer(request.model.tokenizer_name or source)
    model = build_classifier(request, tokenizer, class_names(texts.splits))
    require_vocabulary(model, tokenizer, source)
    check_optimizer(request.args, model)
    splits = encode(texts, tokenizer, request.data.max_length)
    require_one_batch(model, DataCollatorWithPadding(tokenizer), splits["train"], source)
    return splits, tokenizer, model


def build_classifier(
    request: ClassifierRequest, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
) -> PreTrainedModel:
    """The pretrained model with a new task head, one output per class."""
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


def train(request: ClassifierRequest, run: RecipeRun) -> None:
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
        run,
        "texts",
        1,
        model=model,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy_of(load_metric("accuracy_and_f1", args)),
    )
    results = train_and_measure(trainer, run)
    # On every rank: where weights are sharded, a forward pass needs all of them.
    results["sample"] = some_answers(trainer, tokenizer, names)
    finish(
        trainer,
        run,
        results,
        data=request.data.words,
        card=card_details(request),
        hints=hints(request),
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


def hints(request: ClassifierRequest) -> list[tuple[str, str]]:
    """What to try next, each with the command for it."""
    table = ["--train_file", "mine.csv", "--text_column", "TEXT"]
    return [
        *other_optimizers(request.args, RATES),
        longer(request.args),
        *own_data("your own table", table),
        OWN_SCRIPT,
    ]
