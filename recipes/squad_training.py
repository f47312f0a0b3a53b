"""Fine-tuning a question answerer: questions to windows, a pretrained model, its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from answer_spans import answers_of, encode, load_questions
from datasets import Dataset, DatasetDict
from model_kind import ANSWERER, require_class, require_one_batch, require_vocabulary
from next_steps import OWN_SCRIPT, Rates, longer, other_optimizers, own_data
from offline_metric import load_metric
from one_clear_message import blamed_on
from pretrained import CHECK_NAME, fine_tuning_card, named_config_of, padding_tokenizer
from recipe_run import Prepared, RecipeRun, limited, say_main
from squad_arguments import SquadRequest
from training_session import check_optimizer, finish, make_trainer, train_and_measure
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    set_seed,
)

from hf_relopt.errors import ConfigError

LIMITS = "It answers every question with a span of the text, even if the text has no answer."
# Fromage's is the paper's; none is tuned here.
RATES = Rates(
    {"fromage_spectral": 0.001, "adamw_torch": 3e-5, "fromage": 0.001, "madam": 0.001},
    said=("adamw_torch",),
)
# What a model learns from, of all that a window has.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions")


def prepare(request: SquadRequest) -> Prepared:
    """Make questions, tokenizer and model; every mistake of the user shows up here."""
    source = request.model.model_name_or_path
    require_class(named_config_of(source), source, ANSWERER)
    say_main(request.args, f"reading {request.data.words}")
    questions = load_questions(request.data, request.args.seed)
    train = limited(questions["train"], request.data.max_train_samples)
    validation = limited(questions["validation"], request.data.max_eval_samples)
    name = request.model.tokenizer_name or source
    tokenizer = padding_tokenizer(name)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{name} has no fast tokenizer, and only fast tokenizers report the "
            "positions of tokens."
        )
    model = build_model(request)
    require_vocabulary(model, tokenizer, source)
    check_optimizer(request.args, model)
    splits = DatasetDict(
        train=encode(train, tokenizer, request.data),
        validation=encode(validation, tokenizer, request.data),
        questions=validation,
    )
    windows = splits["train"].select_columns(
        [name for name in MODEL_INPUTS if name in splits["train"].column_names]
    )
    require_one_batch(model, DataCollatorWithPadding(tokenizer), windows, source)
    return splits, tokenizer, model


def build_model(request: SquadRequest) -> PreTrainedModel:
    """The pretrained model with a new task head: a start and an end logit for each token."""
    source = request.model.model_name_or_path
    set_seed(request.args.seed)
    with blamed_on(f"cannot load the model {source}", CHECK_NAME):
        return AutoModelForQuestionAnswering.from_pretrained(source)


def train(request: SquadRequest, run: RecipeRun) -> None:
    """Train, measure and write everything into the run folder."""
    args = request.args
    splits, tokenizer, model = run.prepare(lambda: prepare(request))
    model = model or build_model(request)
    windows = f"{len(splits['train']):,} windows to train on"
    say_main(
        args,
        f"{request.model.model_name_or_path}: {model.num_parameters():,} parameters; {windows}, "
        f"{len(splits['questions']):,} questions to validate on",
    )
    last: dict[str, list[str]] = {}
    trainer = make_trainer(
        run,
        "windows",
        1,
        model=model,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=scores_of(
            splits["validation"],
            splits["questions"],
            request.data.max_answer_length,
            load_metric("answer_exact_and_f1", args),
            last,
        ),
    )
    results = train_and_measure(trainer, run)
    if trainer.is_world_process_zero() and last:
        results["sample"] = some_answers(splits["questions"], last["answers"])
    finish(
        trainer,
        run,
        results,
        data=request.data.words,
        card=card_details(request),
        hints=hints(request),
    )


def scores_of(
    windows: Dataset,
    questions: Dataset,
    max_answer_length: int,
    metric: Any,
    last: dict[str, list[str]],
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's compute_metrics: exact match and F1; leaves the answers in ``last``."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        starts, ends = prediction.predictions[:2]
        contexts = questions["context"]
        last["answers"] = answers_of(starts, ends, windows, contexts, max_answer_length)
        return metric.compute(
            predictions=last["answers"],
            references=[answers["text"] for answers in questions["answers"]],
        )

    return compute


def some_answers(questions: Dataset, answers: list[str]) -> str:
    """The first validation questions with the model's answer and a true one."""
    rows = questions.select(range(min(4, len(questions))))
    return "\n".join(
        f"{row['question']} {answer or '(nothing)'} (truth: {row['answers']['text'][0]})"
        for row, answer in zip(rows, answers, strict=False)
    )


def card_details(request: SquadRequest) -> dict[str, Any]:
    """What the card says that the trainer does not know."""
    return fine_tuning_card(
        request.args,
        request.model.model_name_or_path,
        request.data,
        summary=f"{request.model.model_name_or_path} fine-tuned to answer the questions of "
        f"{request.data.words}.",
        tasks="question-answering",
        limits=LIMITS,
    )


def hints(request: SquadRequest) -> list[tuple[str, str]]:
    """What to try next, each with the command for it."""
    return [
        *other_optimizers(request.args, RATES),
        longer(request.args),
        *own_data("your own questions", ["--train_file", "mine.json"]),
        OWN_SCRIPT,
    ]
